"""The kernels at both ends of a step: a plan's changes reach the request state, inputs follow from it, results reach
the token ring."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from albireo.config import SchedulerConfig, SegmentFds
from albireo.gpu_worker.cuda.kernels import fetch_plan as fetch_kernels
from albireo.gpu_worker.cuda.kernels import finish_step as finish_kernels
from albireo.gpu_worker.cuda.kernels.finish_step import finish_step
from albireo.gpu_worker.cuda.kernels.step_inputs import chunk_inputs, decode_inputs
from albireo.gpu_worker.cuda.rings import StepRings
from albireo.gpu_worker.cuda.runtime import CudaRuntime, HostRuntime, Runtime
from albireo.gpu_worker.cuda.state import CudaState
from albireo.gpu_worker.cuda.step_buffers import Staging, StepBuffers
from albireo.messages import WAITED, Finish
from albireo.shm import layout, segment
from albireo.shm.plan_ring import PlanRing, PlanSlot, PlanWriter
from albireo.shm.token_ring import TokenReader, TokenRing, TokenWriter

CONFIG = SchedulerConfig(max_num_seqs=300, max_num_batched_tokens=700, max_model_len=96, block_size=16, run_ahead=1)


def test_word_offsets_are_the_layout_s() -> None:
    def words(record: Any, **expected: Any) -> None:
        for name, value in expected.items():
            assert record.fields[name][1] == 4 * value.value, name

    words(
        layout.PLAN_HEADER, num_rows=fetch_kernels.NUM_ROWS, rows_changed=fetch_kernels.ROWS_CHANGED,
        num_admissions=fetch_kernels.NUM_ADMISSIONS, num_appends=fetch_kernels.NUM_APPENDS,
    )  # fmt: skip
    words(
        layout.ADMISSION, generation=finish_kernels.GENERATION, num_eos_ids=finish_kernels.NUM_EOS_IDS,
        num_stop_ids=finish_kernels.NUM_STOP_IDS, stop_ids=finish_kernels.STOP_IDS,
    )  # fmt: skip
    sizes = [(layout.ADMISSION, fetch_kernels.ADMISSION_WORDS), (layout.BLOCK_APPEND, fetch_kernels.APPEND_WORDS)]
    for record, size in [*sizes, (layout.ADMISSION, finish_kernels.ADMISSION_WORDS),
                         (layout.TOKEN_ROW, finish_kernels.ROW_WORDS)]:  # fmt: skip
        assert record.itemsize == 4 * size.value
    assert layout.ADMISSION["stop_ids"].shape == (finish_kernels.MAX_STOP_IDS.value,)
    assert (finish_kernels.EOS.value, finish_kernels.STOP_TOKEN.value) == (Finish.EOS, Finish.STOP_TOKEN)


@dataclass
class Rig:
    """Rings, the device's state over them, and the coordinator's end."""

    plans: PlanWriter
    tokens: TokenWriter
    confirmed: TokenReader
    rings: StepRings
    state: CudaState
    runtime: Runtime
    buffers: StepBuffers

    def plan(self, **counts: int) -> PlanSlot:
        """The next slot, its header's counts set and everything else as it lies there."""
        plan = self.plans.next_slot()
        for name in layout.PLAN_HEADER.names or ():
            plan.header[name] = counts.get(name, 0)
        return plan

    def fetch(self) -> None:
        counts = self.plans.next_slot().counts()
        self.rings.send_plan(counts._replace(sequence=self.plans.publish()))
        self.state.fetch_plan()
        if self.runtime.is_timed:
            torch.cuda.synchronize()


@pytest.fixture
def rig(device: torch.device) -> Iterator[Rig]:
    runtime: Runtime = CudaRuntime(0) if device.type == "cuda" else HostRuntime()
    plan_ring, token_ring = PlanRing(CONFIG, 1), TokenRing(CONFIG)
    fds = [segment.create("plan", plan_ring.geometry.size), segment.create("token", token_ring.geometry.size)]
    plan_ring.initialise(fds[0])
    token_ring.initialise(fds[1])
    rings = StepRings(runtime, CONFIG, 1, 0, SegmentFds(fds[0], (fds[1],), -1))
    state = CudaState(CONFIG, rings, runtime.device)
    buffers = StepBuffers(CONFIG, state, runtime)
    yield Rig(
        plan_ring.writer(fds[0]), token_ring.writer(fds[1]), token_ring.reader(fds[1]), rings, state, runtime, buffers
    )
    for fd in fds:
        os.close(fd)


def admission(slot: int, rng: np.random.Generator) -> np.ndarray:
    entry = np.frombuffer(rng.bytes(layout.ADMISSION.itemsize), layout.ADMISSION).copy()
    entry["slot"] = slot
    return entry


def test_rows_admissions_and_appended_blocks_of_a_plan_reach_the_state(rig: Rig) -> None:
    rng = np.random.default_rng(0)
    slots, state = rng.permutation(CONFIG.num_slots).astype(np.int32), rig.state
    plan = rig.plan(num_rows=280, rows_changed=1, num_admissions=20, num_appends=310)
    plan.rows[:] = 77  # beyond num_rows lies what an older plan left
    plan.rows[:280] = slots[:280]
    entries = np.concatenate([admission(int(slot), rng) for slot in slots[-20:]])
    plan.admissions[:20] = entries
    table = rng.integers(0, 10_000, (CONFIG.num_slots, 6), np.int32)
    places = rng.permutation(table.size)[:310]
    appends = plan.appends[:310]
    appends["slot"], appends["index"] = places // 6, places % 6
    appends["block"] = table.reshape(-1)[places]
    rig.fetch()
    rows = state.rows.cpu().numpy()
    assert rows[:280].tolist() == slots[:280].tolist()
    assert (rows[280:] == -1).all()
    assert (state.block_table.cpu().numpy().reshape(-1)[places] == table.reshape(-1)[places]).all()
    assert np.count_nonzero(state.block_table.cpu().numpy()) == np.count_nonzero(table.reshape(-1)[places])
    records = state.admissions.cpu().numpy()
    assert records[slots[-20:]].tobytes() == plan.admissions[:20].tobytes()
    assert not records[slots[:-20]].any()
    assert sorted(np.flatnonzero(state.alive.cpu().numpy())) == sorted(slots[-20:])


def test_a_plan_without_changes_leaves_the_state_and_the_slot_follows_the_count_of_steps(rig: Rig) -> None:
    rig.plan(num_rows=1, rows_changed=1).rows[0] = 5
    rig.fetch()
    rig.state.step += 1
    steady = rig.plan(num_rows=1)
    steady.rows[0] = 9
    rig.fetch()
    assert rig.state.rows[:2].tolist() == [5, -1]


def decode(rig: Rig, num_rows: int) -> None:
    state, b = rig.state, rig.buffers
    decode_inputs[(-(-max(num_rows, 1) // 256),)](
        num_rows, state.rows, state.alive, state.last_token, state.num_tokens, state.block_table, b.slots, b.input_ids,
        b.positions, b.slot_mapping, b.seq_lens, b.sample_slots, b.sample_positions, rig.rings.stamps, state.step,
        BLOCK_SIZE=16, TABLE_WIDTH=6, NUM_SLOTS=3, STAMP_STRIDE=rig.rings.stamps.stride(0),
        IS_TIMED=rig.runtime.is_timed,
    )  # fmt: skip


def test_decode_inputs_follow_from_the_state_and_dead_rows_touch_nothing(rig: Rig) -> None:
    rng, state, b = np.random.default_rng(1), rig.state, rig.buffers
    n, slots = 270, CONFIG.num_slots
    rows = rng.permutation(slots)[:n].astype(np.int32)
    rows[260:] = -1
    state.rows[:n] = torch.from_numpy(rows)
    lengths = rng.integers(1, 97, slots).astype(np.int32)
    alive = rng.integers(0, 2, slots).astype(np.int32)
    table, last = rng.integers(0, 9999, (slots, 6)).astype(np.int32), rng.integers(0, 500, slots).astype(np.int32)
    for tensor, value in [(state.num_tokens, lengths), (state.alive, alive), (state.last_token, last)]:
        tensor.copy_(torch.from_numpy(value))
    state.block_table.copy_(torch.from_numpy(table))
    decode(rig, n)
    live = (rows >= 0) & (alive[rows] == 1)
    position = np.where(live, lengths[rows] - 1, 0)
    mapping = np.where(live, table[rows, position // 16].astype(np.int64) * 16 + position % 16, -1)
    for tensor, expected in [
        (b.slots, rows), (b.positions, position), (b.slot_mapping, mapping),
        (b.seq_lens, np.where(live, lengths[rows], 0)), (b.input_ids, np.where(live, last[rows], 0)),
        (b.sample_slots, rows), (b.sample_positions, np.where(live, lengths[rows], 0)),
    ]:  # fmt: skip
        assert tensor[:n].cpu().numpy().tolist() == expected.tolist()


@pytest.mark.parametrize("num_rows", [0, 3])
def test_chunk_inputs_stand_behind_the_decode_rows(rig: Rig, num_rows: int) -> None:
    b, state = rig.buffers, rig.state
    rng = np.random.default_rng(2)
    table = rng.integers(0, 9999, (CONFIG.num_slots, 6)).astype(np.int32)
    state.block_table.copy_(torch.from_numpy(table))
    starts, lengths = np.array([0, 32, 5], np.int32), np.array([40, 1, 20], np.int32)
    slots, samples = np.array([7, 301, 0], np.int32), np.array([True, False, True])
    ends = np.cumsum(lengths, dtype=np.int32)
    n = int(ends[-1])
    positions = np.concatenate([np.arange(s, s + m) for s, m in zip(starts, lengths, strict=True)]).astype(np.int32)
    ids, owners = rng.integers(0, 500, n).astype(np.int32), np.repeat(slots, lengths)
    staging = Staging(3, 4096, rig.runtime)
    packed = staging.send(
        1, ids, positions, owners, slots, starts + lengths, num_rows + ends, (num_rows + ends - 1)[samples],
        slots[samples], (starts + lengths)[samples],
    )  # fmt: skip
    chunk_inputs[(1,)](
        packed, num_rows, n, 3, 2, state.block_table, state.last_token, state.num_tokens, b.slots, b.input_ids,
        b.positions, b.slot_mapping, b.seq_lens, b.query_start, b.sample_slots, b.sample_positions,
        b.sample_index, BLOCK_SIZE=16, TABLE_WIDTH=6,
    )  # fmt: skip
    mapping = table[owners, positions // 16].astype(np.int64) * 16 + positions % 16
    behind = slice(num_rows, num_rows + n)
    for tensor, expected in [(b.input_ids, ids), (b.positions, positions), (b.slot_mapping, mapping)]:
        assert tensor[behind].tolist() == expected.tolist()
    assert b.query_start[: num_rows + 4].tolist() == [*range(num_rows), *(num_rows + np.array([0, *ends])).tolist()]
    assert b.slots[num_rows : num_rows + 3].tolist() == slots.tolist()
    assert b.seq_lens[num_rows : num_rows + 3].tolist() == (starts + lengths).tolist()
    index = [*range(num_rows), num_rows + 39, num_rows + 60]
    assert b.sample_index[: num_rows + 2].tolist() == index
    assert b.sample_slots[num_rows : num_rows + 2].tolist() == [7, 0]
    assert b.sample_positions[num_rows : num_rows + 2].tolist() == [40, 25]
    assert state.num_tokens[[7, 0]].tolist() == [40, 25], "a prompt that ends can be gone on with"
    assert state.last_token[[7, 0]].tolist() == [ids[39], ids[60]]
    assert state.num_tokens.count_nonzero() == 2 and state.last_token.count_nonzero() <= 2


def test_a_finished_step_ends_requests_advances_the_others_and_writes_the_step_s_slot(rig: Rig) -> None:
    state, b = rig.state, rig.buffers
    records = np.zeros(CONFIG.num_slots, layout.ADMISSION)
    records["generation"] = np.arange(CONFIG.num_slots) + 1000
    records["stop_ids"][:, :4] = [11, 12, 13, 12]  # two EOS ids and two stop ids, one of them an EOS id as well
    records["num_eos_ids"], records["num_stop_ids"] = 2, 2
    records["stop_ids"][:, 4:] = 50  # behind the stop ids lies what nobody may read as one
    state.admissions.copy_(torch.from_numpy(records.view(np.int32).reshape(CONFIG.num_slots, -1)))
    state.alive.fill_(1)
    state.alive[4] = 0
    slots, tokens = [3, 9, 0, 4, -1, 5, 6, 7], [11, 12, 13, -1, 11, 50, 20, WAITED]
    b.sample_slots[:8] = torch.tensor(slots, dtype=torch.int32)
    b.tokens[:8] = torch.tensor(tokens, dtype=torch.int32)
    b.sample_positions[:8] = torch.arange(30, 38, dtype=torch.int32)
    state.step.fill_(4)
    rings = rig.rings
    finish_step[(1,)](
        8, b.sample_slots, b.sample_positions, b.tokens, state.admissions, state.alive, state.last_token,
        state.num_tokens, rings.results, state.step, rings.stamps, SLOT_WORDS=rings.results.stride(0),
        NUM_SLOTS=rings.num_slots, STAMP_STRIDE=rings.stamps.stride(0), ROWS_AT=rings.result_rows_at, LANES=512,
        IS_TIMED=rig.runtime.is_timed,
    )  # fmt: skip
    rig.runtime.finish(*rings.fetch_results(5, 8))
    if rig.runtime.is_timed:
        torch.cuda.synchronize()
    for _ in range(4):  # the device's fifth step is the ring's fifth
        rig.tokens.publish()
        rig.confirmed.poll()
        rig.confirmed.consume()
    slot = rig.tokens.next_slot()
    out = slot.rows[:8].tolist()
    assert [row[0] for row in out] == [3, 9, 0, 4, 0, 5, 6, 7], "padding is left out"
    assert [row[1] for row in out if row[1]] == [1003, 1009, 1000, 1004, 1005, 1006, 1007]
    assert [row[2] for row in out] == [11, 12, 13, -1, 0, 50, 20, WAITED]
    assert [row[3] for row in out] == [1, 1, 2, 0, 0, 0, 0, 0]
    assert (slot.rows["slot"][8:] == 0).all()
    others = [index for index in range(rings.num_slots) if index != 5 % rings.num_slots]
    assert not rings.results[others].any(), "no other slot is written"
    assert state.alive[[3, 9, 0, 4, 5, 6, 7]].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert state.last_token[[3, 5, 6, 4, 7]].tolist() == [11, 50, 20, 0, 0]
    assert state.num_tokens[[3, 5, 6, 4, 7]].tolist() == [31, 36, 37, 0, 0], "no token, no step on"
    assert state.step.item() == 5
