"""Preempted sequences whose KV goes to host memory and back: the same tokens, logits and logprobs as without."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from pipeline import Pipeline
from sampled_requests import assert_same, run

from albireo.coordinator.swap_costs import SwapCosts


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("swap") / "qwen3", "qwen3")


@pytest.fixture(scope="module")
def unlimited(path: Path) -> Callable[[], Pipeline]:
    return cache(lambda: run(path))


def assert_same_logits(ours: Pipeline, theirs: Pipeline) -> None:
    for seed, result in ours.results.items():
        for position, logits in result.logits.items():
            torch.testing.assert_close(logits, theirs.results[seed].logits[position], atol=2e-4, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"enable_prefix_caching": False}, {"num_blocks": 12}], ids=str)
@pytest.mark.parametrize("run_ahead", [0, 2])
@pytest.mark.parametrize("size", [1, 2])
def test_swapping_changes_nothing(
    path: Path, unlimited: Callable[[], Pipeline], size: int, run_ahead: int, settings: dict[str, Any]
) -> None:
    pipeline = run(path, **({"num_blocks": 20, "num_swap_blocks": 40, "size": size, "run_ahead": run_ahead} | settings))
    assert pipeline.scheduler.swap.num_swapped_in > 0
    assert_same(pipeline, unlimited())
    assert_same_logits(pipeline, unlimited())


def test_a_sequence_that_comes_back_computes_no_token_again_but_those_of_its_last_block(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = {}
    for swaps in (False, True):
        monkeypatch.setattr(SwapCosts, "prefers_swap", lambda costs, num_blocks, swaps=swaps: swaps)
        pipeline = run(path, num_blocks=12, num_swap_blocks=100, run_ahead=0, enable_prefix_caching=False)
        assert pipeline.scheduler.counters.num_preemptions > 0
        computed[swaps] = pipeline.num_chunk_tokens
        saved = 16 * pipeline.scheduler.swap.num_swapped_in
        assert (saved > 0) == swaps
    assert computed[False] - computed[True] == saved
