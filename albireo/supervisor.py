"""The supervisor: owns the listening socket, the shared memory and the sockets' directory; starts every process,
watches them, stops them. It imports neither torch nor starlette, so it starts at once and never dies of theirs.

A child's stdin is a pipe that carries its config and whose end tells it that the supervisor is gone (`child.py`).
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NoReturn

import zmq

from albireo import __version__, config, sockets
from albireo.config import ChildConfig, SegmentFds
from albireo.engine_file import EngineInfo, leave_flight_record, write_engine_file
from albireo.engine_segments import create_segments
from albireo.errors import StartupError
from albireo.listener import ListenAddress, listening
from albireo.messages import (
    EngineReady,
    Fatal,
    FromSupervisor,
    GrammarDown,
    Progress,
    Ready,
    Stop,
    ToSupervisor,
    WorkerReady,
    encode,
    supervisor_decoder,
)
from albireo.rank_watch import RankWatch
from albireo.run_directory import RunDirectory
from albireo.shm.segment import SegmentError
from albireo.shm.stats import EngineStats
from albireo.signal_pipe import SignalPipe
from albireo.startup_display import StartupDisplay

STOP_TIMEOUT_S = 3.0
"""How long a process with nothing left to finish may take to end by itself before it is killed."""
LAST_WORDS_MS = 300
"""How long a dead child's last message may take to arrive."""
WATCH_INTERVAL_MS = 250
"""How often the ranks' heartbeats are looked at; they beat at least twice a second."""


@dataclass(slots=True)
class Child:
    """A process of ours and what it has said."""

    spec: "ChildSpec"
    process: subprocess.Popen[bytes]
    pidfd: int
    is_heard: bool = False
    """It has sent something: a ROUTER drops what it has for a peer that it has not met."""
    is_ready: bool = False
    num_kv_blocks: int = 0
    device: str = ""
    fatal: Fatal | None = None

    @property
    def config(self) -> ChildConfig:
        return self.spec.config

    @property
    def name(self) -> str:
        return self.spec.config.name


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A process to start: `python -m module` with this config, environment additions and inherited descriptors."""

    module: str
    config: ChildConfig
    environment: dict[str, str] = field(default_factory=dict)
    fds: tuple[int, ...] = ()
    restarts_per_minute: int = 0
    """0: the server ends with it. Else another takes its place, up to so many a minute."""


class EngineStopped(Exception):
    """The engine ends; carries the exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Supervisor:
    """Runs one engine from its specs to its exit code."""

    def __init__(
        self, run_dir: str, signals: SignalPipe, display: StartupDisplay, shutdown_timeout_s: float, ranks: RankWatch
    ) -> None:
        self._ranks = ranks
        self._engine_is_broken = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._control = sockets.open_socket(self._context, zmq.ROUTER)
        self._control.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a process that takes another's place has its name
        self._control.bind(sockets.control_address(run_dir))
        self._decoder = supervisor_decoder()
        self._signals = signals
        self._display = display
        self._shutdown_timeout_s = shutdown_timeout_s
        self._children: dict[str, Child] = {}
        self._is_up = False
        self._replaced_s: deque[float] = deque()
        """When processes were started anew, in the last minute."""
        self._missing: deque[ChildSpec] = deque()
        """Processes that died too often, until that minute is over."""
        self._poller = zmq.Poller()
        self._poller.register(self._control, zmq.POLLIN)
        self._poller.register(signals.fd, zmq.POLLIN)

    # -- start --------------------------------------------------------------------------------------------------

    def start(self, specs: list[ChildSpec]) -> Child:
        """Starts every process and waits until all are ready; returns a worker. Raises EngineStopped."""
        for spec in specs:
            self._spawn(spec)
        workers = [child for child in self._children.values() if child.name.startswith("worker")]
        while not all(child.is_heard for child in self._children.values()) or not all(
            worker.num_kv_blocks for worker in workers
        ):
            self.watch()
        for name in self._children:
            self._tell(name, EngineReady(min(worker.num_kv_blocks for worker in workers)))
        while not all(child.is_ready for child in self._children.values()):
            self.watch()
        self._is_up = True
        return workers[0]

    def pids(self) -> dict[str, int]:
        """Of every process that was started, by name."""
        return {name: child.process.pid for name, child in self._children.items()}

    def _spawn(self, spec: ChildSpec) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", spec.module],
            stdin=subprocess.PIPE,
            pass_fds=spec.fds,
            process_group=0,  # a terminal's Ctrl-C is for the supervisor alone
            env={**os.environ, **spec.environment},
        )
        assert process.stdin is not None
        process.stdin.write(config.encode_config(spec.config))
        process.stdin.flush()
        child = Child(spec, process, os.pidfd_open(process.pid))
        self._children[child.name] = child
        self._poller.register(child.pidfd, zmq.POLLIN)

    # -- watch --------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """One turn: events, or after a quarter of a second none, and a look at the ranks. Raises EngineStopped."""
        self.poll(WATCH_INTERVAL_MS)
        if self._a_rank_is_stuck():
            raise EngineStopped(1)
        if self._missing and self._may_replace(self._missing[0]):
            self._display.error(f"{self._missing[0].config.name} is started again")
            self._spawn(self._missing.popleft())

    def _a_rank_is_stuck(self) -> bool:
        """Looks at the heartbeats and says who is stuck, if anybody is."""
        stuck = self._ranks.check(time.monotonic_ns())
        if stuck is not None:
            self._engine_is_broken = True
            self._display.error(f"{stuck}; stopping everything")
        return stuck is not None

    def poll(self, timeout_ms: int | None = None) -> None:
        """Waits for one round of events and handles them. Raises EngineStopped on a signal or a child's end."""
        events = dict(self._poller.poll(timeout_ms))
        if self._control in events:
            self._hear()
        if self._signals.fd in events and self._signals.take():
            raise EngineStopped(0)
        for child in list(self._children.values()):
            if child.pidfd not in events:
                continue
            if not self._is_up or not child.spec.restarts_per_minute:
                raise EngineStopped(self._report_death(child))
            self._replace(child)

    def _replace(self, child: Child) -> None:
        """The engine goes on without a process that died, and as a rule another takes its place."""
        how = self._how_it_died(child)
        self._poller.unregister(child.pidfd)
        self._bury(child)
        del self._children[child.name]
        restarts = self._may_replace(child.spec)
        self._tell("coordinator-0", GrammarDown(child.process.pid, restarts))
        if restarts:
            self._spawn(child.spec)
        else:
            self._missing.append(child.spec)
        rest = "another takes its place" if restarts else "so often that it is not started again for a minute"
        self._display.error(f"{child.name} (pid {child.process.pid}) {how}; {rest}")

    def _may_replace(self, spec: ChildSpec) -> bool:
        """Whether it has not been started anew too often; if so, this counts."""
        now_s = time.monotonic()
        while self._replaced_s and self._replaced_s[0] < now_s - 60:
            self._replaced_s.popleft()
        if len(self._replaced_s) >= spec.restarts_per_minute:
            return False
        self._replaced_s.append(now_s)
        return True

    def _hear(self) -> None:
        while self._control.poll(0):
            identity, data = self._control.recv_multipart()
            child = self._children.get(identity.decode())
            if child is not None:  # else the last words of one whose place is empty
                child.is_heard = True
                self._handle(child, self._decoder.decode(data))

    def _handle(self, child: Child, message: ToSupervisor) -> None:
        match message:
            case Progress(stage=stage, fraction=fraction):
                self._display.progress(child.name, stage, fraction)
            case WorkerReady(num_kv_blocks=num_kv_blocks, device=device):
                child.num_kv_blocks, child.device, child.is_ready = num_kv_blocks, device, True
            case Ready():
                child.is_ready = True
            case Fatal():
                child.fatal = message

    def _report_death(self, child: Child) -> int:
        """Says which process died and why; returns the exit code that follows."""
        how = self._how_it_died(child)
        if child.fatal is not None:
            self._display.error(f"{child.name}: {child.fatal.message}")
            return child.fatal.exit_code
        if isinstance(child.config, config.WorkerConfig):
            how += self._ranks.last_seen(child.config.rank)
        self._display.error(f"{child.name} (pid {child.process.pid}) {how}; stopping everything")
        return 1

    def _how_it_died(self, child: Child) -> str:
        code = child.process.wait()
        if code > 0:
            self._control.poll(LAST_WORDS_MS)
        self._hear()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"

    def _tell(self, name: str, message: FromSupervisor) -> None:
        self._control.send_multipart([name.encode(), encode(message)])

    # -- stop ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ends every process: frontends first, so that running streams can finish while the engine lives, then the
        engine. A signal cuts the wait short. Nothing is left when it returns."""
        frontends = [child for child in self._children.values() if child.name.startswith("frontend")]
        engine = [child for child in self._children.values() if child not in frontends]
        needed = [child for child in engine if not child.spec.restarts_per_minute]
        ended = None
        if not self._engine_is_broken:
            ended = self._end(frontends, Stop(drain=True), self._shutdown_timeout_s, needed=needed)
        if ended is None:
            ended = self._end(frontends, Stop(drain=False), STOP_TIMEOUT_S)
        if ended:
            self._end(engine, Stop(), STOP_TIMEOUT_S)
        for child in self._children.values():
            child.process.kill()
            child.process.wait()
            self._bury(child)
        self._control.close()
        self._context.term()

    @staticmethod
    def _bury(child: Child) -> None:
        """What is left of a process that has ended."""
        if child.process.stdin is not None:
            child.process.stdin.close()
        os.close(child.pidfd)

    def _end(self, children: list[Child], stop: Stop, timeout_s: float, needed: Sequence[Child] = ()) -> bool | None:
        """Asks children to end and waits. False: a signal says not to wait any longer. None: one of the `needed` is
        dead or stuck, so that waiting for streams to finish is in vain."""
        for child in children:
            if child.is_ready:
                self._tell(child.name, stop)
            else:
                child.process.terminate()  # still starting: it holds nothing worth a clean end
        deadline = time.monotonic() + timeout_s
        poller = zmq.Poller()
        for fd in (self._signals.fd, *(child.pidfd for child in (*children, *needed))):
            poller.register(fd, zmq.POLLIN)
        while any(child.process.poll() is None for child in children):
            if any(child.process.poll() is not None for child in needed) or (needed and self._a_rank_is_stuck()):
                return None
            remaining_ms = int((deadline - time.monotonic()) * 1000)
            if remaining_ms <= 0:
                break
            events = dict(poller.poll(min(remaining_ms, WATCH_INTERVAL_MS)))
            if self._signals.fd in events and self._signals.take():
                return False
            for child in children:
                if child.pidfd in events:
                    poller.unregister(child.pidfd)
        return True


def run_engine(
    make_specs: Callable[[str, SegmentFds, int], list[ChildSpec]],
    scheduler: config.SchedulerConfig,
    num_workers: int,
    model_name: str,
    address: ListenAddress,
    display: StartupDisplay,
    shutdown_timeout_s: float,
    worker_timeout_s: float,
    num_frontends: int,
    vocab_size: int | None,
) -> int:
    """Starts an engine of `num_workers` ranks, serves until a signal or a death, stops it; returns the exit code.

    `make_specs` gets the run directory, the segments and the listening socket's descriptor. `vocab_size`: of a model
    that can serve structured output. Raises StartupError.
    """
    with ExitStack() as stack:
        signals = stack.enter_context(SignalPipe())
        listener = stack.enter_context(listening(address))
        run_dir = stack.enter_context(RunDirectory())
        try:
            names = config.process_names(num_workers, num_frontends, vocab_size is not None)
            segments = create_segments(scheduler, num_workers, names, num_frontends, vocab_size)
        except SegmentError as error:
            raise StartupError(str(error)) from error
        ranks = RankWatch(EngineStats(segments.stats).workers, int(worker_timeout_s * 1e9))
        supervisor = Supervisor(run_dir, signals, display, shutdown_timeout_s, ranks)
        stack.callback(supervisor.stop)
        try:
            worker = supervisor.start(make_specs(run_dir, segments, listener.socket.fileno()))
            device = worker.device if num_workers == 1 else f"{num_workers} x {worker.device}"
            info = EngineInfo(os.getpid(), __version__, model_name, listener.host, listener.port, segments.flight)
            write_engine_file(run_dir, info)
            display.ready(device, worker.num_kv_blocks * scheduler.block_size, listener.url)
            serve_until_stopped(supervisor, segments, display)
        except EngineStopped as stopped:
            return stopped.exit_code


def serve_until_stopped(supervisor: Supervisor, segments: SegmentFds, display: StartupDisplay) -> NoReturn:
    """Watches a started engine. Raises EngineStopped; after a crash the flight records are saved first."""
    try:
        while True:
            supervisor.watch()
    except EngineStopped as stopped:
        if stopped.exit_code:
            try:
                path = leave_flight_record(segments.flight)
                display.error(f"the last steps: albireo-run trace --record {path}")
            except OSError as error:
                display.error(f"the last steps could not be saved: {error}")
        raise
