"""A plan's inputs: the short way of a step that only decodes says the same as the way for any step."""

from typing import Any

import numpy as np
import pytest
import torch

from albireo.config import SchedulerConfig
from albireo.gpu_worker.device_state import DeviceState
from albireo.gpu_worker.step_inputs import StepInputs, _mixed_inputs, build_inputs, decode_rows
from albireo.shm import segment
from albireo.shm.plan_ring import PlanRing, PlanSlot

CONFIG = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=128, block_size=4)


def make_state(rows: list[int], dead: list[int]) -> DeviceState:
    rng = np.random.default_rng(3)
    state = DeviceState(CONFIG)
    state.rows = np.array(rows, np.int32)
    state.alive[rows] = True
    state.alive[dead] = False
    state.num_tokens[:] = rng.integers(1, 128, CONFIG.num_slots)
    state.last_token[:] = rng.integers(0, 50, CONFIG.num_slots)
    state.block_table[:] = rng.integers(0, 99, state.block_table.shape)
    return state


def make_plan() -> PlanSlot:
    ring = PlanRing(CONFIG, 1)
    fd = segment.create("plan", ring.geometry.size)
    ring.initialise(fd)
    return ring.writer(fd).next_slot()


def fields(inputs: StepInputs) -> dict[str, Any]:
    """Every array of the inputs as (dtype, values)."""
    found = {}
    for owner in (inputs, inputs.batch, inputs.rows):
        for name in owner.__slots__:
            value = getattr(owner, name)
            if isinstance(value, (np.ndarray, torch.Tensor)):
                found[name] = (str(value.dtype), value.tolist())
            elif isinstance(value, int):
                found[name] = ("int", value)
    return found


@pytest.mark.parametrize(
    ("rows", "dead"), [([], []), ([5], []), ([7, 0, 3], []), ([7, 0, 3], [0]), ([1, 2], [1, 2]), (list(range(8)), [6])]
)
def test_a_decode_step_s_inputs_are_those_of_any_step_without_chunks(rows: list[int], dead: list[int]) -> None:
    state, plan = make_state(rows, dead), make_plan()
    expected = _mixed_inputs(plan, state, CONFIG.block_size, decode_rows(state))
    assert fields(build_inputs(plan, state, CONFIG.block_size)) == fields(expected)


def test_chunks_come_behind_the_decode_rows() -> None:
    state, plan = make_state([2], []), make_plan()
    state.num_tokens[2] = 9
    plan.header["num_chunks"], plan.header["num_chunk_tokens"] = 1, 3
    plan.chunks[0] = (4, 6, 3, 1, 1000, -1)
    plan.chunk_tokens[:3] = [11, 12, 13]
    inputs = build_inputs(plan, state, CONFIG.block_size)
    assert inputs.positions.tolist() == [8, 6, 7, 8]
    assert inputs.input_ids.tolist() == [state.last_token[2], 11, 12, 13]
    assert inputs.rows.result_slots.tolist() == inputs.rows.slots.tolist() == [2, 4]
    assert inputs.rows.positions.tolist() == [9, 9]
    block = int(state.block_table[4, 1])
    assert inputs.batch.slot_mapping.tolist()[1:] == [block * 4 + 2, block * 4 + 3, int(state.block_table[4, 2]) * 4]
