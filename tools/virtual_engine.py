"""Replicas under a clock that jumps from event to event: minutes of a node in seconds.

The scheduler, the router and the simulated device are those that serve; left out is what the host takes, but for a
constant. So this says what a node could carry, and how fast this machine is changes nothing of it.
"""

import os
from collections import deque
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from albireo.config import SegmentFds, WorkerConfig
from albireo.coordinator.request import Request
from albireo.coordinator.run_ahead import RunAhead
from albireo.coordinator.scheduler import Scheduler
from albireo.engine_args import EnginePlan
from albireo.frontend.routing import Router
from albireo.gpu_worker.sim_device import SimDevice
from albireo.messages import SamplingParams
from albireo.serve import engine_specs
from albireo.shm import segment
from albireo.shm.flight import Part
from albireo.shm.plan_ring import PlanRing, PlanSlot
from albireo.shm.token_ring import TokenRing, TokenSlot

Int64s = npt.NDArray[np.int64]
NEVER: Final = 1 << 62


class Workload(NamedTuple):
    """Requests in the order in which they arrive: arrays [n]."""

    arrival_ns: Int64s
    input_len: Int64s
    """Prompt tokens; no two prompts begin alike."""
    output_len: Int64s
    """Tokens of the answer."""


class Timings:
    """Of a workload's requests, arrays [n]; 0 where it has not happened."""

    def __init__(self, num_requests: int) -> None:
        self.first_ns = np.zeros(num_requests, np.int64)
        """When the first token was there."""
        self.last_ns = np.zeros(num_requests, np.int64)
        self.num_tokens = np.zeros(num_requests, np.int64)

    def take(self, request_ids: npt.NDArray[np.uint64], now_ns: int) -> None:
        """A step gave each of these a token, `now_ns`."""
        numbers = request_ids.astype(np.int64)
        newly = numbers[self.num_tokens[numbers] == 0]
        self.first_ns[newly] = now_ns
        self.last_ns[numbers] = now_ns
        self.num_tokens[numbers] += 1


class _Timer:
    """Nobody waits for the device: `VirtualReplica.next_end_ns` says when a step is over."""

    fd = -1

    def set(self, time_ns: int) -> None:
        pass


class _Clock:
    """In a worker's recorder's place: plans are seen when the clock says so, and nothing takes time."""

    def __init__(self) -> None:
        self.now_ns = self.step = self.num_rows = 0

    def start(self, step: int, num_rows: int = 0) -> int:
        return self.now_ns

    def mark(self, part: Part) -> int:
        return self.now_ns

    def record(self, part: Part, step: int, begin_ns: int, end_ns: int, num_rows: int = 0) -> None:
        pass


class _Step(NamedTuple):
    """In flight."""

    begin_ns: int
    end_ns: int
    swap_ns: int
    rows: npt.NDArray[Any]


class VirtualReplica:
    """A scheduler and its devices, of which one rank stands for all: they do the same at the same time."""

    def __init__(self, plan: EnginePlan, host_ns: int = 0) -> None:
        """`plan`: of a simulated device. `host_ns`: what lies between a step's results and the beginning of the first
        step that is planned from them; it is hidden where others were planned ahead."""
        (worker, *_), spec = engine_specs(plan, "info", "", _no_segments(plan.num_workers)), plan.sim
        assert isinstance(worker.config, WorkerConfig)
        assert spec is not None, "no simulated device"
        self._host_ns = host_ns
        self._clock = clock = _Clock()
        self.device = SimDevice(worker.config, spec, clock, lambda: clock.now_ns, _Timer(), self._count)
        self.scheduler = Scheduler(
            plan.scheduler, self.device.num_kv_blocks, (), b"", plan.num_workers, plan.sampling_mode
        )
        self._run_ahead = RunAhead(plan.scheduler.run_ahead)
        self._plan, self._result = _plan_slot(plan), _token_slot(plan)
        self._steps: deque[_Step] = deque()
        self.busy_ns = 0
        """In which the devices worked on steps that are over."""
        self.num_steps = 0
        self.is_up = True
        self.num_sequences = 0
        self.num_prompt_tokens = 0

    @property
    def next_end_ns(self) -> int:
        return self._steps[0].end_ns if self._steps else NEVER

    def submit(self, number: int, input_len: int, output_len: int, now_ns: int) -> None:
        self.num_sequences += 1
        self.num_prompt_tokens += input_len
        self.scheduler.submit(
            Request(
                frontend=0, request_id=number, tokens=np.zeros(input_len, np.int32), priority=0, arrival=number,
                sampling=SamplingParams(seed=number, max_tokens=output_len, ignore_eos=True), cache_salt=str(number),
                max_total_tokens=input_len + output_len,
            )
        )  # fmt: skip
        self._launch(now_ns)

    def end_step(self, input_len: Int64s, timings: Timings) -> int:
        """Confirms the oldest step in flight, of the workload's requests, and launches what follows. Returns how many
        requests it ended."""
        step = self._steps.popleft()
        self._clock.now_ns = step.end_ns
        assert self.device.finish_oldest()
        self.num_steps += 1
        self._run_ahead.observe(step.begin_ns, step.end_ns)
        if self.scheduler.swap.is_on:
            self.scheduler.swap.costs.observe(step.begin_ns, step.end_ns, step.swap_ns)
        rows = self.scheduler.confirm(step.rows)
        numbers = rows.request_ids.astype(np.int64)
        self.num_prompt_tokens -= int(input_len[numbers[timings.num_tokens[numbers] == 0]].sum())
        timings.take(rows.request_ids, step.end_ns)
        num_ended = int(np.count_nonzero(rows.finish))
        self.num_sequences -= num_ended
        self.scheduler.admitted.clear()
        self.scheduler.take_preemptions()
        self._launch(step.end_ns)
        return num_ended

    def _launch(self, now_ns: int) -> None:
        self._clock.now_ns = now_ns + self._host_ns
        while self.scheduler.num_in_flight <= self._run_ahead.depth and self.scheduler.has_work:
            if not self.scheduler.plan(self._plan):
                break
            if self.scheduler.swap.is_on:
                self.scheduler.swap.costs.expect(self._plan.counts())
            self.device.launch(self._plan, self._result)
            header = self._result.header[0]
            begin_ns, end_ns, swap_ns = (int(header[name]) for name in ("begin_ns", "end_ns", "swap_ns"))
            self._steps.append(_Step(begin_ns, end_ns, swap_ns, self._result.rows[: header["num_rows"]].copy()))

    def _count(self, busy_ns: int, working_s: float) -> None:
        self.busy_ns += busy_ns


def run(
    replicas: list[VirtualReplica], router: Router, work: Workload, most_late: int = NEVER, late_ns: int = NEVER
) -> Timings | None:
    """Until all requests have ended. None as soon as more than `most_late` have waited longer than `late_ns` for their
    first token."""
    timings = Timings(work.arrival_ns.size)
    arrivals = zip(work.arrival_ns.tolist(), work.input_len.tolist(), work.output_len.tolist(), strict=True)
    num_ended, number, coming = 0, 0, next(arrivals, None)
    while num_ended < work.arrival_ns.size:
        replica = min(replicas, key=lambda each: each.next_end_ns)
        if coming is not None and coming[0] <= replica.next_end_ns:
            now_ns, input_len, output_len = coming
            chosen = router.choose(b"", "", replicas)
            assert chosen is not None
            replicas[chosen.replica].submit(number, input_len, output_len, now_ns)
            number, coming = number + 1, next(arrivals, None)
            if not number % 64 and _num_late(work, timings, number, now_ns - late_ns) > most_late:
                return None
        else:
            num_ended += replica.end_step(work.input_len, timings)
    return timings


def _num_late(work: Workload, timings: Timings, num_arrived: int, before_ns: int) -> int:
    """Of the requests that have arrived, those that came earlier than that and have no token."""
    waiting = timings.num_tokens[:num_arrived] == 0
    return int(np.count_nonzero(waiting & (work.arrival_ns[:num_arrived] < before_ns)))


def _no_segments(num_workers: int) -> SegmentFds:
    names = [*(f"worker-{rank}" for rank in range(num_workers)), "coordinator-0"]
    return SegmentFds(-1, (-1,) * num_workers, -1, flight=dict.fromkeys(names, -1))


def _plan_slot(plan: EnginePlan) -> PlanSlot:
    """One for all steps: the device has read a plan when its launch returns."""
    ring = PlanRing(plan.scheduler, 1)
    fd = segment.create("plan", ring.geometry.size)
    ring.initialise(fd)
    slot = ring.writer(fd).next_slot()
    os.close(fd)
    return slot


def _token_slot(plan: EnginePlan) -> TokenSlot:
    ring = TokenRing(plan.scheduler)
    fd = segment.create("token", ring.geometry.size)
    ring.initialise(fd)
    slot = ring.writer(fd).next_slot()
    os.close(fd)
    return slot
