"""A replica under a clock that jumps from event to event: minutes of a node in seconds.

The scheduler and the simulated device are those that serve; left out is what the host takes, but for constants. So this
says what a replica could carry, and how fast this machine is changes nothing of it.
"""

import heapq
import itertools
import os
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy.typing as npt

from albireo.config import SegmentFds, WorkerConfig
from albireo.coordinator.request import Request
from albireo.coordinator.results import ConfirmedRows
from albireo.coordinator.run_ahead import RunAhead
from albireo.coordinator.scheduler import Scheduler
from albireo.engine_args import EnginePlan
from albireo.gpu_worker.sim_device import SimDevice
from albireo.messages import Admitted
from albireo.serve import engine_specs
from albireo.shm import segment
from albireo.shm.flight import Part
from albireo.shm.plan_ring import PlanRing, PlanSlot
from albireo.shm.token_ring import TokenRing, TokenSlot


class Clock:
    """Virtual time, and what is to happen in it. Of what is due at the same time, what was said first happens first."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, time_ns: int, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_ns, next(self._numbers), act))

    def run(self) -> None:
        """Until nothing more is to happen."""
        while self._events:
            self.now_ns, _, act = heapq.heappop(self._events)
            act()

    def stop(self) -> None:
        self._events.clear()


class _Timer:
    """Nobody waits for the device: the clock comes back when a step is over."""

    fd = -1

    def set(self, time_ns: int) -> None:
        pass


class _Recorder:
    """In a worker's recorder's place: plans are seen when the replica says so, and nothing takes time."""

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


OnStep = Callable[[list[Admitted], ConfirmedRows], None]
"""What a step has brought: whom it admitted, and its tokens."""


class VirtualReplica:
    """A scheduler and its devices, of which one rank stands for all: they do the same at the same time."""

    def __init__(self, plan: EnginePlan, clock: Clock, on_step: OnStep, host_ns: int = 0, confirm_ns: int = 0) -> None:
        """`plan`: of a simulated device. `host_ns`: what lies between a step's results and the beginning of the first
        step that is planned from them; it is hidden where others were planned ahead. `confirm_ns`: from a step's end
        until its results are known."""
        (worker, *_), spec = engine_specs(plan, "info", "", _no_segments(plan.num_workers)), plan.sim
        assert isinstance(worker.config, WorkerConfig)
        assert spec is not None, "no simulated device"
        self._clock, self._on_step = clock, on_step
        self._host_ns, self._confirm_ns = host_ns, confirm_ns
        self._recorder = recorder = _Recorder()
        self.device = SimDevice(worker.config, spec, recorder, lambda: recorder.now_ns, _Timer(), self._count)
        self.scheduler = Scheduler(
            plan.scheduler, self.device.num_kv_blocks, (), b"", plan.num_workers, plan.sampling_mode
        )
        self._run_ahead = RunAhead(plan.scheduler.run_ahead)
        self._plan, self._result = _plan_slot(plan), _token_slot(plan)
        self._steps: deque[_Step] = deque()
        self.busy_ns = 0
        """In which the devices worked on steps that are over."""
        self.num_steps = 0
        self.num_sequences = 0
        """Waiting and running, as the coordinator would say: at the last step."""
        self.num_held_tokens = 0
        """Of the KV cache, what requests held then."""

    @property
    def kv_tokens(self) -> int:
        """That its cache holds."""
        return self.device.num_kv_blocks * self.scheduler.config.block_size

    def submit(self, request: Request) -> None:
        self.scheduler.submit(request)
        self._launch()

    def _end_step(self) -> None:
        """Confirms the oldest step in flight, and launches what follows."""
        step = self._steps.popleft()
        self._recorder.now_ns = step.end_ns
        assert self.device.finish_oldest()
        self.num_steps += 1
        self._run_ahead.observe(step.begin_ns, step.end_ns)
        if self.scheduler.swap.is_on:
            self.scheduler.swap.costs.observe(step.begin_ns, step.end_ns, step.swap_ns)
        rows = self.scheduler.confirm(step.rows)
        admitted = list(itertools.chain.from_iterable(self.scheduler.admitted.values()))
        self.scheduler.admitted.clear()
        self.scheduler.take_preemptions()
        self._on_step(admitted, rows)
        self._launch()
        self.num_sequences = self.scheduler.slots.num_running + len(self.scheduler.waiting)
        self.num_held_tokens = self.scheduler.pool.num_used * self.scheduler.config.block_size

    def _launch(self) -> None:
        """As many steps as may be in flight."""
        self._recorder.now_ns = self._clock.now_ns + self._host_ns
        while self.scheduler.num_in_flight <= self._run_ahead.depth and self.scheduler.has_work:
            if not self.scheduler.plan(self._plan):
                break
            if self.scheduler.swap.is_on:
                self.scheduler.swap.costs.expect(self._plan.counts())
            self.device.launch(self._plan, self._result)
            header = self._result.header[0]
            begin_ns, end_ns, swap_ns = (int(header[name]) for name in ("begin_ns", "end_ns", "swap_ns"))
            self._steps.append(_Step(begin_ns, end_ns, swap_ns, self._result.rows[: header["num_rows"]].copy()))
            self._clock.at(end_ns + self._confirm_ns, self._end_step)

    def _count(self, busy_ns: int, working_s: float) -> None:
        self.busy_ns += busy_ns


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
