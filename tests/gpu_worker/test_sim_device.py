"""The simulated device under its worker, with a clock that the tests turn."""

import os
import select
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from albireo.checkpoint import kv_bytes_per_block, read_checkpoint
from albireo.config import SchedulerConfig, SegmentFds, WorkerConfig
from albireo.coordinator.request import Request
from albireo.coordinator.scheduler import Scheduler
from albireo.gpu_worker.sim_device import SimDevice
from albireo.gpu_worker.sim_meter import INTERVAL_NS, SimMeter
from albireo.gpu_worker.step_timer import StepTimer
from albireo.gpu_worker.stream_worker import StreamWorker
from albireo.gpu_worker.token_rule import next_tokens
from albireo.messages import SamplingParams
from albireo.serve import DEMO_MODEL
from albireo.shm import layout, segment
from albireo.shm.flight import Part
from albireo.shm.plan_ring import PlanRing
from albireo.shm.token_ring import TokenRing, TokenSlot
from albireo.sim.roofline import Roofline, StepWork
from albireo.sim.spec import DeviceSpec, Power, read_spec

MODEL = read_checkpoint(str(DEMO_MODEL), check_weights=False).model
SPEC = read_spec("h100")
SCHEDULER = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=32, max_model_len=128, num_swap_blocks=16)
BLOCK_BYTES = kv_bytes_per_block(MODEL, SCHEDULER.block_size, "bfloat16")
SECOND = 1_000_000_000


class FakeTimer:
    fd = -1
    time_ns = 0

    def set(self, time_ns: int) -> None:
        self.time_ns = time_ns


class Recording:
    """A recorder whose marks take no time."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self.step = self.num_rows = 0
        self._clock_ns = clock_ns
        self.parts: list[tuple[Part, int, int, int]] = []

    def start(self, step: int, num_rows: int = 0) -> int:
        return self._clock_ns()

    def mark(self, part: Part) -> int:
        return self._clock_ns()

    def record(self, part: Part, step: int, begin_ns: int, end_ns: int, num_rows: int = 0) -> None:
        self.parts.append((part, step, begin_ns, end_ns))


class Engine:
    """A scheduler, whose plans are published when a test says so, and a worker that looks when a test says so."""

    def __init__(self, num_blocks: int = 64) -> None:
        self.now_ns = SECOND
        config = WorkerConfig(
            name="worker-0", run_dir="", log_level="info", scheduler=SCHEDULER, segments=SegmentFds(-1, (), -1), rank=0,
            num_workers=1, sampling_mode="sequence-parallel", collectives="shm", model=MODEL, model_path="",
            device="sim", dtype="bfloat16", kv_cache_bytes=num_blocks * BLOCK_BYTES, num_threads=1,
            load_format="safetensors", seed=0, sim=SPEC,
        )  # fmt: skip
        self.timer, self.recorder, self.used = FakeTimer(), Recording(self.clock_ns), list[tuple[int, float]]()
        self.device = SimDevice(
            config, SPEC, self.recorder, self.clock_ns, self.timer, lambda *use: self.used.append(use)
        )
        self.scheduler = Scheduler(SCHEDULER, self.device.num_kv_blocks, (), hash_key=b"key")
        plan_ring, token_ring = PlanRing(SCHEDULER, 1), TokenRing(SCHEDULER)
        fds = [segment.create("plan", plan_ring.geometry.size), segment.create("token", token_ring.geometry.size)]
        plan_ring.initialise(fds[0])
        token_ring.initialise(fds[1])
        self.plans = plan_ring.writer(fds[0])
        self.results = token_ring.reader(fds[1])
        beat = np.zeros(1, layout.WORKER_HEARTBEAT)
        self.worker = StreamWorker(
            self.device, plan_ring.reader(fds[0], 0), token_ring.writer(fds[1]), lambda: None, beat, self.recorder,
            self.clock_ns,
        )  # fmt: skip
        for fd in fds:
            os.close(fd)

    def clock_ns(self) -> int:
        return self.now_ns

    def submit(self, num_prompt: int, max_tokens: int, number: int = 0) -> None:
        self.scheduler.submit(
            Request(
                frontend=0, request_id=number, sampling=SamplingParams(seed=number, max_tokens=max_tokens),
                tokens=np.full(num_prompt, 7, np.int32), priority=0, cache_salt=str(number), arrival=number,
                max_total_tokens=num_prompt + max_tokens,
            )
        )  # fmt: skip

    def plan(self) -> None:
        assert self.scheduler.plan(self.plans.next_slot())
        self.plans.publish()

    def look(self, after_ns: int = 0) -> None:
        """The worker launches and publishes what there is, `after_ns` later."""
        self.now_ns += after_ns
        while self.worker.step():
            pass

    def take(self) -> TokenSlot | None:
        """The next published result, confirmed."""
        result = self.results.poll()
        if result is not None:
            self.scheduler.confirm(result.rows[: int(result.header["num_rows"][0])].copy(), result.logprobs[:0].copy())
            self.results.consume()
        return result


@pytest.fixture
def engine() -> Engine:
    return Engine()


def times(result: TokenSlot | None) -> tuple[int, int]:
    assert result is not None
    return int(result.header["begin_ns"][0]), int(result.header["end_ns"][0])


def step_ns(work: StepWork, spec: DeviceSpec = SPEC) -> int:
    return round(1e9 * Roofline(MODEL, 1, "bfloat16", spec).step(work).total)


def test_steps_take_what_the_roofline_says_of_their_plans(engine: Engine) -> None:
    engine.submit(40, max_tokens=3)  # 32 tokens, then 8 that end the prompt
    engine.submit(10, max_tokens=3, number=1)
    expected = [
        StepWork.prefill(1, 32)._replace(num_samples=0),
        StepWork.prefill(1, 8, start=32) + StepWork.prefill(1, 10),
        StepWork(num_rows=2, context_tokens=41 + 11, num_samples=2),
    ]
    for work in expected:
        engine.plan()
        engine.look()
        engine.look(SECOND)
        begin_ns, end_ns = times(engine.take())
        assert end_ns - begin_ns == step_ns(work)


def test_a_result_is_published_when_the_step_is_over_and_not_before(engine: Engine) -> None:
    engine.submit(10, max_tokens=2)
    engine.plan()
    engine.look()
    end_ns = engine.timer.time_ns
    engine.look(end_ns - engine.now_ns - 1)
    assert engine.take() is None
    engine.look(1)
    result = engine.take()
    assert times(result)[1] == end_ns == engine.now_ns
    assert engine.timer.time_ns == 0
    assert result is not None
    seeds, positions = np.array([0], np.uint64), np.array([10], np.int32)
    assert result.rows["token"][0] == next_tokens(seeds, positions, MODEL.vocab_size)[0]


def test_a_step_that_was_planned_in_time_begins_at_the_very_end_of_the_one_before(engine: Engine) -> None:
    engine.submit(10, max_tokens=3)
    for _ in range(3):
        engine.plan()
    engine.look()  # all three are launched at once
    engine.look(SECOND)  # and the worker takes notice much later
    marks = [times(engine.take()) for _ in range(3)]
    assert marks[0][0] == SECOND
    assert [begin for begin, _ in marks[1:]] == [end for _, end in marks[:-1]]


def test_a_step_that_was_planned_late_begins_when_it_was_picked_up(engine: Engine) -> None:
    engine.submit(10, max_tokens=3)
    engine.plan()
    engine.look()
    engine.look(SECOND)
    _, end_ns = times(engine.take())
    engine.plan()
    engine.look(5_000)
    engine.look(SECOND)
    begin_ns, _ = times(engine.take())
    assert begin_ns == 2 * SECOND + 5_000 > end_ns


def test_the_timer_is_set_to_the_oldest_step_s_end(engine: Engine) -> None:
    engine.submit(10, max_tokens=3)
    engine.plan()
    engine.plan()
    engine.look()
    first_ns = engine.timer.time_ns
    engine.look(first_ns - engine.now_ns)
    assert engine.timer.time_ns == first_ns + step_ns(StepWork.decode(1, 11))


def test_busy_and_working_times_and_parts_are_told(engine: Engine) -> None:
    engine.submit(10, max_tokens=2)
    engine.plan()
    engine.look()
    engine.look(SECOND)
    begin_ns, end_ns = times(engine.take())
    parts = Roofline(MODEL, 1, "bfloat16", SPEC).step(StepWork.prefill(1, 10))
    assert engine.used == [(end_ns - begin_ns, parts.working)]
    sampling_ns = end_ns - round(1e9 * parts.sample)
    assert [record for record in engine.recorder.parts if record[0] in (Part.FORWARD, Part.SAMPLE)] == [
        (Part.FORWARD, 1, begin_ns, sampling_ns), (Part.SAMPLE, 1, sampling_ns, end_ns),
    ]  # fmt: skip


def test_block_copies_take_the_host_link_s_time_before_the_step() -> None:
    engine = Engine(num_blocks=6)
    for number in range(2):
        engine.submit(30, max_tokens=60, number=number)
    copied = 0
    for _ in range(200):
        if not engine.scheduler.has_work:
            break
        plan = engine.plans.next_slot()
        if engine.scheduler.plan(plan):
            engine.plans.publish()
            copies = plan.counts().num_swap_outs + plan.counts().num_swap_ins
            engine.look()
            before_ns = engine.now_ns
            engine.look(SECOND)
            result = engine.take()
            assert result is not None
            swap_ns = int(result.header["swap_ns"][0])
            assert swap_ns == round(1e9 * copies * BLOCK_BYTES / SPEC.host_bandwidth)
            assert times(result)[0] == before_ns + swap_ns
            copied += copies
    assert copied, "nothing was swapped: the cache is not small enough"


def test_a_timer_is_readable_from_its_time_on() -> None:
    timer = StepTimer()
    try:
        poll = select.poll()
        poll.register(timer.fd, select.POLLIN)
        assert not poll.poll(0)
        begin_ns = time.monotonic_ns()
        timer.set(begin_ns + 20_000_000)
        assert not poll.poll(0)
        assert poll.poll(5_000)
        assert time.monotonic_ns() >= begin_ns + 20_000_000
        assert poll.poll(0), "it stays readable"
        timer.set(time.monotonic_ns() + 60 * SECOND)
        assert not poll.poll(0)
        timer.set(begin_ns)
        assert poll.poll(0), "a time that is past"
        timer.set(0)
        assert not poll.poll(0)
    finally:
        timer.close()


def test_a_meter_counts_idle_power_always_and_the_rest_while_the_device_computes() -> None:
    meter = SimMeter(Power(idle=50.0, max=250.0), memory_used_bytes=7, now_ns=SECOND)
    first = meter.sample(SECOND)
    assert first is not None
    assert (first.energy_mj, first.utilization_perc, first.power_mw) == (0, 0, 50_000)
    assert meter.sample(SECOND + INTERVAL_NS - 1) is None
    meter.add_working(0.25)
    reading: Any = meter.sample(2 * SECOND)
    assert reading.energy_mj == (50 + 200 * 0.25) * 1000
    assert (reading.utilization_perc, reading.power_mw, reading.memory_used_bytes) == (25, 100_000, 7)
    meter.add_working(3.0)  # a long step ends: more than the time since the last reading
    assert meter.sample(3 * SECOND).power_mw == 250_000  # type: ignore[union-attr]
