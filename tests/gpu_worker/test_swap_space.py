"""Block copies of a plan on the CPU: out of the KV cache and in again, out before in."""

import os
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint

from albireo.checkpoint import read_checkpoint
from albireo.config import SchedulerConfig
from albireo.gpu_worker.kv_cache import KVCache
from albireo.gpu_worker.swap_space import HostSwapSpace
from albireo.shm import segment
from albireo.shm.plan_ring import PlanRing, PlanSlot

CONFIG = SchedulerConfig(max_model_len=128, block_size=16, num_swap_blocks=6)


@pytest.fixture
def plan() -> PlanSlot:
    ring = PlanRing(CONFIG, 1)
    fd = segment.create("plan", ring.geometry.size)
    ring.initialise(fd)
    slot = ring.writer(fd).next_slot()
    os.close(fd)
    return slot


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return read_checkpoint(str(write_checkpoint(tmp_path_factory.mktemp("swap") / "llama", "llama"))).model


def fill(plan: PlanSlot, outs: list[tuple[int, int]], ins: list[tuple[int, int]]) -> None:
    plan.header["num_swap_outs"], plan.header["num_swap_ins"] = len(outs), len(ins)
    plan.copies[: len(outs) + len(ins)] = [*outs, *ins]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_come_back_bit_by_bit_after_others_had_their_places(
    plan: PlanSlot, model: Any, dtype: torch.dtype
) -> None:
    kv, beats = KVCache(model, 8, CONFIG.block_size, dtype), []
    swap = HostSwapSpace(kv, model, dtype, CONFIG, lambda: beats.append(1))
    beats.clear()
    generator = np.random.default_rng(1)
    for pages in (page for layer in kv.layers for page in layer):
        pages.copy_(torch.from_numpy(generator.standard_normal(pages.shape)))
    before = [page.clone() for layer in kv.layers for page in layer]
    fill(plan, [(3, 5), (1, 0), (7, 2)], [])
    assert swap.copy(plan)
    for pages in (page for layer in kv.layers for page in layer):
        pages[[1, 3, 7]] = -1.0
    fill(plan, [], [(2, 5), (1, 0)])
    assert swap.copy(plan)
    for pages, old in zip((page for layer in kv.layers for page in layer), before, strict=True):
        assert torch.equal(pages[[0, 2, 1, 4, 5, 6]], old[[0, 3, 1, 4, 5, 6]])
        assert (pages[[3, 7]] == -1.0).all()
    assert len(beats) == 2 * model.num_layers, "a long copy would look like a hang"


def test_a_block_goes_out_before_another_comes_into_its_place(plan: PlanSlot, model: Any) -> None:
    kv = KVCache(model, 2, CONFIG.block_size, torch.float32)
    swap = HostSwapSpace(kv, model, torch.float32, CONFIG, lambda: None)
    for pages in (page for layer in kv.layers for page in layer):
        pages[0], pages[1] = 10.0, 11.0
    fill(plan, [(0, 4)], [])
    swap.copy(plan)
    fill(plan, [(1, 3)], [(1, 4)])
    swap.copy(plan)
    fill(plan, [], [(0, 3)])
    swap.copy(plan)
    for pages in (page for layer in kv.layers for page in layer):
        assert (pages[0] == 11.0).all()
        assert (pages[1] == 10.0).all()


def test_a_plan_without_copies_does_nothing(plan: PlanSlot, model: Any) -> None:
    kv = KVCache(model, 2, CONFIG.block_size, torch.float32)
    fill(plan, [], [])
    assert not HostSwapSpace(kv, model, torch.float32, CONFIG, lambda: None).copy(plan)
