"""An engine of null devices for a benchmark: the supervisor's own parts, started and stopped around a measurement."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from albireo.bench.process_cpu import cpu_by_role
from albireo.config import SegmentFds, process_names
from albireo.engine_args import EnginePlan
from albireo.engine_segments import create_segments
from albireo.errors import StartupError
from albireo.notify import Notifier
from albireo.run_directory import RunDirectory
from albireo.shm.segment import SegmentError
from albireo.shm.stats import EngineStats
from albireo.signal_pipe import SignalPipe
from albireo.startup_display import StartupDisplay
from albireo.supervisor.child_process import ChildSpec
from albireo.supervisor.deaths import EngineStopped
from albireo.supervisor.engine_memory import EngineMemory
from albireo.supervisor.supervisor import Supervisor

_SHUTDOWN_TIMEOUT_S = 1.0
_WORKER_TIMEOUT_S = 30.0

MakeSpecs = Callable[[str, SegmentFds], list[ChildSpec]]
"""From the run directory and the segments to the processes."""


class EngineLostError(Exception):
    """The engine did not start or did not last, or a signal came; the supervisor has said why on stderr."""


class _ErrorsOnly(StartupDisplay):
    """A start for every batch size is no news; what goes wrong is."""

    def progress(self, process: str, stage: str, fraction: float) -> None:
        """Says nothing."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An engine's counters at one moment."""

    time_s: float
    num_tokens: int
    num_steps: int
    device_s: float
    """Steps' time on the device."""
    exposed_s: float
    """Time between steps in which there was something to do."""
    cpu_s: dict[str, float]
    """By role: coordinator, worker (all ranks), frontend; and `client`, this process."""


class RunningEngine:
    """Processes that are ready. `check` now and then, from the thread that started it."""

    def __init__(self, run_dir: str, supervisor: Supervisor, stats: npt.NDArray[Any]) -> None:
        self.run_dir = run_dir
        self._supervisor = supervisor
        self._stats = stats
        self._pids = supervisor.pids()

    def check(self) -> None:
        """Raises EngineLostError when a process has died or a signal came."""
        try:
            self._supervisor.poll(0)
        except EngineStopped as stopped:
            raise EngineLostError("the engine has stopped") from stopped
        if self._supervisor.pids() != self._pids:
            raise EngineLostError("a process of the engine has died")

    def snapshot(self) -> Snapshot:
        """Counters of now; some are a step older than others."""
        stats = self._stats[0]
        return Snapshot(
            time_s=time.perf_counter(),
            num_tokens=int(stats["generation_tokens"]),
            num_steps=int(stats["num_confirmed_steps"]),
            device_s=int(stats["step_device_ns"]) / 1e9,
            exposed_s=int(stats["step_exposed_ns"]) / 1e9,
            cpu_s=cpu_by_role(self._supervisor.pids()) | {"client": time.process_time()},
        )


@contextmanager
def running_engine(engine: EnginePlan, make_specs: MakeSpecs) -> Iterator[RunningEngine]:
    """The engine, ready, until the end of the block. Raises EngineLostError, StartupError."""
    with ExitStack() as stack:
        signals = stack.enter_context(SignalPipe())
        run_dir = stack.enter_context(RunDirectory())
        try:
            segments = create_segments(engine.scheduler, engine.num_workers, process_names(engine.num_workers))
        except SegmentError as error:
            raise StartupError(str(error)) from error
        stack.callback(_close, segments)
        stats = EngineStats(segments.stats)
        memory = EngineMemory(segments, engine.scheduler, engine.num_workers, _WORKER_TIMEOUT_S)
        supervisor = Supervisor(
            run_dir, signals, _ErrorsOnly("", interactive=False), _SHUTDOWN_TIMEOUT_S, [memory], Notifier()
        )
        stack.callback(supervisor.stop)
        try:
            supervisor.start(make_specs(run_dir, segments))
        except EngineStopped as stopped:
            raise EngineLostError("the engine did not start") from stopped
        yield RunningEngine(run_dir, supervisor, stats.engine)


def _close(segments: SegmentFds) -> None:
    rings = (segments.plan_ring, *segments.token_rings)
    for fd in (*rings, segments.stats, segments.collectives, segments.requests, *segments.flight.values()):
        if fd >= 0:
            os.close(fd)
