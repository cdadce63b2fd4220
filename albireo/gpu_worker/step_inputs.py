"""From a plan and the device's state to the tensors of a step. numpy on arrays: no loop over rows or tokens."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.device_state import DeviceState
from albireo.shm.plan_ring import PlanSlot

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class StepRows:
    """Which of a step's rows sample: the decode rows that are alive, then the chunks that end a prompt."""

    slots: Int32s
    """[num_sampled]"""
    positions: npt.NDArray[np.int64]
    """[num_sampled]: position of the token that is sampled."""
    live: npt.NDArray[np.bool_]
    """[num_rows + sampling chunks]: which of the plan's result rows these are; the others are dead."""
    result_slots: Int32s
    """[num_rows + sampling chunks]: the plan's result rows."""


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A step's tokens: decode rows that are alive, one token each, then the prompt chunks."""

    rows: StepRows

    input_ids: torch.Tensor
    """int64 [num_tokens]"""
    positions: torch.Tensor
    """int64 [num_tokens]"""
    batch: AttentionBatch
    sampled_tokens: npt.NDArray[np.int64]
    """[num_sampled]: which of the tokens yield a next one: the live rows', then the chunks' that end a prompt."""


def decode_rows(state: DeviceState) -> StepRows:
    """Of a step that only decodes: rows that ended in an earlier step are left out."""
    live = state.alive[state.rows]
    slots = state.rows if live.all() else state.rows[live]
    return StepRows(slots, state.num_tokens[slots].astype(np.int64), live, state.rows)


def build_inputs(plan: PlanSlot, state: DeviceState, block_size: int) -> StepInputs:
    """The step that `plan` describes, once it is applied to `state`.

    Rows that ended in an earlier step are left out: on a device whose shapes are free, dead rows cost nothing. A
    step planned past the end of all of its rows has no token at all.
    """
    decoding = decode_rows(state)
    if plan.counts().num_chunks:
        return _mixed_inputs(plan, state, block_size, decoding)
    return _decode_inputs(state, block_size, decoding)


def _decode_inputs(state: DeviceState, block_size: int, decoding: StepRows) -> StepInputs:
    """Of a step that only decodes."""
    rows = decoding.slots
    seq_lens = state.num_tokens[rows]
    positions = seq_lens.astype(np.int64)
    positions -= 1
    index, offset = np.divmod(positions, block_size)
    slot_mapping = state.block_table[rows, index] * np.int64(block_size)
    slot_mapping += offset
    return StepInputs(
        rows=decoding,
        input_ids=torch.from_numpy(state.last_token[rows].astype(np.int64)),
        positions=torch.from_numpy(positions),
        batch=AttentionBatch(
            block_table=state.block_table_tensor,
            slots=torch.from_numpy(rows),
            query_start=torch.arange(rows.size + 1, dtype=torch.int32),
            seq_lens=torch.from_numpy(seq_lens),
            slot_mapping=torch.from_numpy(slot_mapping),
            num_decodes=rows.size,
            max_query_len=int(rows.size > 0),
            max_seq_len=int(seq_lens.max(initial=0)),
        ),
        sampled_tokens=np.arange(rows.size),
    )


def _mixed_inputs(plan: PlanSlot, state: DeviceState, block_size: int, decoding: StepRows) -> StepInputs:
    """Of a step with prompt chunks behind its decode rows."""
    rows = decoding.slots
    header = plan.header[0]
    chunks = plan.chunks[: header["num_chunks"]]
    ends_prompt = chunks["samples"] == 1
    result_slots = np.concatenate([state.rows, chunks["slot"][ends_prompt]])
    live = np.ones(result_slots.size, np.bool_)
    live[: decoding.live.size] = decoding.live

    slots = np.concatenate([rows, chunks["slot"]])
    query_lens = np.ones(slots.size, np.int32)
    query_lens[rows.size :] = chunks["num_tokens"]
    first_positions = np.concatenate([state.num_tokens[rows] - 1, chunks["start"]])
    query_start = np.zeros(slots.size + 1, np.int32)
    np.cumsum(query_lens, out=query_start[1:])
    positions = np.arange(query_start[-1], dtype=np.int64) + np.repeat(first_positions - query_start[:-1], query_lens)
    blocks = state.block_table[np.repeat(slots, query_lens), positions // block_size]
    input_ids = np.concatenate([state.last_token[rows], plan.chunk_tokens[: header["num_chunk_tokens"]]])
    seq_lens = first_positions + query_lens

    last_tokens = query_start[1:].astype(np.int64) - 1
    samples = np.ones(slots.size, np.bool_)
    samples[rows.size :] = ends_prompt
    sampled_tokens = last_tokens[samples]
    return StepInputs(
        rows=StepRows(slots[samples], positions[sampled_tokens] + 1, live, result_slots),
        input_ids=torch.from_numpy(input_ids.astype(np.int64)),
        positions=torch.from_numpy(positions),
        batch=AttentionBatch(
            block_table=state.block_table_tensor,
            slots=torch.from_numpy(slots),
            query_start=torch.from_numpy(query_start),
            seq_lens=torch.from_numpy(seq_lens),
            slot_mapping=torch.from_numpy(blocks * np.int64(block_size) + positions % block_size),
            num_decodes=rows.size,
            max_query_len=int(query_lens.max(initial=0)),
            max_seq_len=int(seq_lens.max(initial=0)),
        ),
        sampled_tokens=sampled_tokens,
    )
