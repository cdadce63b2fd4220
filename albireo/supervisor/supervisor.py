"""The supervisor's loop: start, watch, put others in the place of those that die (`Deaths`), stop.

A process that has stopped without dying (`RankWatch`, `ProcessWatch`), or that does not become ready, is killed; then
it is a death like others.
"""

import logging
import math
import signal
import time
from collections.abc import Sequence
from typing import Final

import zmq

from albireo import logs, sockets
from albireo.config import CoordinatorConfig, FrontendConfig, GrammarConfig, WorkerConfig
from albireo.messages import (
    EngineHalted,
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
from albireo.notify import Notifier
from albireo.settings import EnvFileError, LiveSettings
from albireo.signal_pipe import SignalPipe
from albireo.startup_display import StartupDisplay
from albireo.supervisor.child_process import Child, ChildSpec
from albireo.supervisor.deaths import Deaths, EngineStopped
from albireo.supervisor.engine_memory import EngineMemory
from albireo.supervisor.processes import Processes
from albireo.supervisor.replica import Replica
from albireo.supervisor.restarts import Restarts

log = logging.getLogger(__name__)

STOP_TIMEOUT_S: Final = 3.0
"""How long a process with nothing left to finish may take to end by itself before it is killed."""
LAST_WORDS_S: Final = 0.3
"""How long a dead child's last message may take to arrive."""
WATCH_INTERVAL_S: Final = 0.25
"""How often heartbeats are looked at; they beat at least twice a second."""
START_PROGRESS_S: Final = 300.0
"""How long systemd is asked to wait for the next sign of progress while the server starts."""
RESTART_TIMEOUT_S: Final = 60.0
"""How long a process that takes another's place may take to be ready, or, where the first start took long, four times
that."""


class Supervisor:
    """Runs one engine, all its replicas, from its specs to its exit code."""

    def __init__(
        self,
        run_dir: str,
        signals: SignalPipe,
        display: StartupDisplay,
        shutdown_timeout_s: float,
        memories: Sequence[EngineMemory],
        notifier: Notifier,
        settings: LiveSettings | None = None,
    ) -> None:
        """`memories`: of each replica. `settings`: what SIGHUP reads again, if anything."""
        self._settings = settings
        self._notifier = notifier
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._control = sockets.open_socket(self._context, zmq.ROUTER)
        self._control.bind(sockets.control_address(run_dir))
        self._decoder = supervisor_decoder()
        self._signals = signals
        self._display = display
        self._shutdown_timeout_s = shutdown_timeout_s
        self._is_up = False
        self._is_stopping = False
        self._is_stuck = False
        """The engine as a whole."""
        self._start_timeout_s = RESTART_TIMEOUT_S
        self._poller = zmq.Poller()
        self._poller.register(self._control, zmq.POLLIN)
        self._poller.register(signals.fd, zmq.POLLIN)
        self._processes = Processes(self._poller, settings)
        restarts = Restarts()
        self._replicas = [
            Replica(
                self._processes.of(number),
                memory,
                Deaths(number, self._processes, memory, display, self._tell, restarts),
            )
            for number, memory in enumerate(memories)
        ]

    # -- start --------------------------------------------------------------------------------------------------

    def start(self, specs: Sequence[ChildSpec]) -> Child:
        """Starts every process and waits until all are ready; returns a worker. Raises EngineStopped."""
        begin_s = time.monotonic()
        self._processes.start(specs)
        while not all(child.is_ready for child in self._processes):
            self.watch()
        self._is_up = True
        self._start_timeout_s = max(RESTART_TIMEOUT_S, 4 * (time.monotonic() - begin_s))
        return self._processes.all(WorkerConfig)[0]

    def pids(self) -> dict[str, int]:
        """Of every process that lives, by name."""
        return {child.name: child.process.pid for child in self._processes}

    # -- watch --------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """One turn: events, or after a quarter of a second none, and a look at the heartbeats. Raises EngineStopped."""
        self.poll(math.ceil(1000 * self._processes.due_in_s(WATCH_INTERVAL_S)))
        if self._is_up and not self._kill_the_stuck() and self._gets_on():
            self._notifier.watchdog()
        self._processes.start_due()
        self._bring_together()
        if self._is_up and not self._is_stopping:
            self._processes.keep_spares()

    def poll(self, timeout_ms: int | None = None) -> None:
        """Waits for one round of events and handles them. Raises EngineStopped on a signal that asks for the end, and
        on a child's end that nothing is done about."""
        events = dict(self._poller.poll(timeout_ms))
        if self._control in events:
            self._hear()
        if self._signals.fd in events and self._is_asked_to_end():
            raise EngineStopped(0)
        for child in self._processes:
            if child.pidfd in events and child in self._processes:
                self._died(child)

    def _kill_the_stuck(self) -> bool:
        """What has stopped without ending; its end is heard of as any other. Whether there was anything."""
        found = False
        for replica in self._replicas:
            stuck = replica.memory.ranks.check(time.monotonic_ns())
            if stuck is not None and replica.workers:  # else it is what the dead ones left in memory
                found = True
                replica.deaths.lose_workers(f"{stuck}; all ranks are started again")
            for name in replica.memory.processes.check(time.monotonic_ns()):
                for child in [each for each in self._processes if each.name == name]:
                    found = True
                    self._kill(child, f"has not moved for {replica.memory.timeout_s:g} s")
        now_s = time.monotonic()
        for child in self._processes:
            if now_s - child.started_s > self._start_timeout_s and not self._has_begun(child):
                found = True
                self._kill(child, f"was not ready after {self._start_timeout_s:.0f} s")
        return found

    def _gets_on(self) -> bool:
        """False when nobody is stuck, and yet nothing goes on: then it is for systemd's watchdog to end it all. While
        other replicas go on, one that does not gets other workers, and the others its requests."""
        waiting = [replica for replica in self._replicas if self._is_idle_with_work(replica)]
        if len(waiting) < len(self._replicas):
            for replica in waiting:
                replica.deaths.restart_stuck()
            waiting.clear()
        was_stuck, self._is_stuck = self._is_stuck, bool(waiting)
        if self._is_stuck and not was_stuck:
            self._display.error("the engine has work and confirms no step, though every process answers")
        return not self._is_stuck

    def _is_idle_with_work(self, replica: Replica) -> bool:
        is_whole = replica.coordinator is not None and bool(replica.coordinator.coordinator)
        return replica.memory.engine.is_stuck(time.monotonic_ns(), is_whole)

    def _has_begun(self, child: Child) -> bool:
        """Whether its heartbeat says from now on that it is stuck. A rank's begins before it has loaded all; others may
        have to wait for the engine before they are ready, and their hearts beat meanwhile."""
        if isinstance(child.config, WorkerConfig):
            return child.is_ready
        return self._replica_of(child).memory.processes.has_begun(child.name)

    def _kill(self, child: Child, why: str) -> None:
        if child.is_killed:  # a large one takes a while to go
            return
        child.is_killed = True
        self._display.error(f"{child.name} (pid {child.process.pid}) {why}")
        child.process.kill()

    def _bring_together(self) -> None:
        """Tells coordinators that their workers are there, and frontends that coordinators are."""
        for number, replica in enumerate(self._replicas):
            coordinator = replica.coordinator
            if coordinator is None or not coordinator.is_heard:
                continue
            if not coordinator.coordinator and replica.has_workers:
                coordinator.coordinator = coordinator.identity
                replica.num_kv_blocks = min(worker.num_kv_blocks for worker in replica.workers)
                self._tell(coordinator, EngineReady(replica.num_kv_blocks, coordinator.identity))
            # one that is alone takes requests without workers, too
            is_alone = len(self._replicas) == 1
            if not (coordinator.has_served if is_alone else coordinator.is_ready):
                continue
            news = EngineReady(replica.num_kv_blocks, coordinator.identity, number, coordinator.is_ready)
            for frontend in self._processes.all(FrontendConfig):
                if frontend.is_heard and frontend.engines.get(number) != news:
                    frontend.engines[number] = news
                    self._tell(frontend, news)

    # -- messages -----------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        while self._control.poll(0):
            identity, data = self._control.recv_multipart()
            child = self._processes.get(identity.decode())
            if child is not None:  # else the last words of one whose place is another's
                if not child.is_heard:
                    child.is_heard = True
                    self._tell_settings(child)  # they may have changed since it was started
                self._handle(child, self._decoder.decode(data))

    def _handle(self, child: Child, message: ToSupervisor) -> None:
        match message:
            case Progress(stage=stage, fraction=fraction):
                if not self._is_up:
                    self._notifier.extend_timeout(START_PROGRESS_S)
                    self._notifier.status(f"starting: {child.name}: {stage}")
                    self._display.progress(child.name, stage, fraction)
            case WorkerReady(num_kv_blocks=num_kv_blocks, device=device):
                child.num_kv_blocks, child.device = num_kv_blocks, device
                self._is_ready(child)
            case Ready():
                self._is_ready(child)
            case EngineHalted():
                self._replica_of(child).deaths.start_workers()
            case Fatal():
                child.fatal = message

    def _is_ready(self, child: Child) -> None:
        is_first, child.has_served, child.is_ready = not child.has_served, True, True
        if self._is_up and is_first:  # a coordinator is ready again each time that it has workers
            replica = self._replica_of(child)
            replica.deaths.forgive(child)
            if isinstance(child.config, CoordinatorConfig) and replica.processes.are_to_come(GrammarConfig):
                self._tell(child, GrammarDown(0, restarts=False))  # of those that died too often it has not heard
            seconds = time.monotonic() - child.started_s
            self._display.note(f"{child.name} (pid {child.process.pid}) is ready after {seconds:.1f} s")

    def _tell(self, child: Child, message: FromSupervisor) -> None:
        self._control.send_multipart([child.identity.encode(), encode(message)])

    # -- signals ------------------------------------------------------------------------------------------------

    def _is_asked_to_end(self) -> bool:
        """Takes the signals that have come."""
        numbers = self._signals.take()
        if signal.SIGHUP in numbers:
            self._reload()
        return any(number != signal.SIGHUP for number in numbers)

    def _reload(self) -> None:
        """Reads --env-file again, and tells everyone what it says."""
        if self._settings is None:
            log.warning("SIGHUP: there is nothing to read again without --env-file")
            return
        is_serving = self._is_up and not self._is_stopping
        if is_serving:
            self._notifier.reloading()
        try:
            self._settings.reload()
        except EnvFileError as error:
            self._display.error(f"nothing is changed: {error}")
        else:
            settings = self._settings.current
            logs.set_level(settings.log_level)
            for child in self._processes:
                self._tell_settings(child)
            num_keys = len(settings.api_keys)
            log.info("read %s: API keys: %d, log level %s", self._settings.path, num_keys, settings.log_level)
        if is_serving:
            self._notifier.reloaded()

    def _tell_settings(self, child: Child) -> None:
        """What it does not know, once it can hear."""
        if self._settings is None or not child.is_heard:
            return
        spec = child.spec.under(self._settings.current)
        if spec != child.spec:
            child.spec = spec
            self._tell(child, spec.settings_message())

    # -- deaths -------------------------------------------------------------------------------------------------

    def _died(self, child: Child) -> None:
        """Does what follows from it. Raises EngineStopped where that is the end."""
        if self._is_stopping and (not self._is_up or isinstance(child.config, FrontendConfig)):
            self._remove(child)  # it was asked to
            return
        how = self._how_it_died(child)
        if not self._is_up:
            raise EngineStopped(self._end_of_start(child, how))
        self._replica_of(child).deaths.follow(child, how)

    def _replica_of(self, child: Child) -> Replica:
        """Frontends are looked after with the first."""
        return self._replicas[child.config.replica]

    def _remove(self, child: Child) -> None:
        self._replica_of(child).deaths.remove(child)

    def _how_it_died(self, child: Child) -> str:
        how = child.ending()
        self._hear()
        if child.process.returncode > 0:
            self._hear_last_words(child)
        if child.fatal is not None:
            return f"{how}: {child.fatal.message}"
        if isinstance(child.config, WorkerConfig):
            how += self._replica_of(child).memory.ranks.last_seen(child.config.rank)
        return how

    def _hear_last_words(self, child: Child) -> None:
        """They may be on their way while others talk."""
        deadline_s = time.monotonic() + LAST_WORDS_S
        while child.fatal is None and (left_s := deadline_s - time.monotonic()) > 0:
            self._control.poll(math.ceil(1000 * left_s))
            self._hear()

    def _end_of_start(self, child: Child, how: str) -> int:
        """Says which process did not start and why; returns the exit code that follows."""
        if child.fatal is not None:
            self._display.error(f"{child.name}: {child.fatal.message}")
            return child.fatal.exit_code
        self._display.error(f"{child.name} (pid {child.process.pid}) {how}; stopping everything")
        return 1

    # -- stop ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ends every process: frontends first, so that running streams can finish while the engine lives, then the
        engine. A signal cuts the wait short. Nothing is left when it returns."""
        self._is_stopping = True
        try:
            if self._is_up and not any(replica.deaths.are_too_many for replica in self._replicas):
                self._end_frontends(Stop(drain=True), self._shutdown_timeout_s)
            self._end_frontends(Stop(drain=False), STOP_TIMEOUT_S)
            self._end_engine()
        except EngineStopped:
            pass  # a second signal, or an engine that cannot go on
        for child in self._processes:
            self._remove(child)
        self._processes.end_spares()
        self._control.close()
        self._context.term()

    def _end_frontends(self, stop: Stop, timeout_s: float) -> None:
        """Asks them to end and waits; meanwhile the engine is looked after as ever, so that their streams can. Raises
        EngineStopped on a signal."""
        self._ask(self._processes.all(FrontendConfig), stop)
        self._processes.give_up(FrontendConfig)
        deadline_s = time.monotonic() + timeout_s
        while self._processes.all(FrontendConfig) and time.monotonic() < deadline_s:
            try:
                self.watch()
            except EngineStopped as stopped:
                if not stopped.exit_code:
                    raise
                return  # it cannot go on: there is nothing to wait for

    def _end_engine(self) -> None:
        self._ask(list(self._processes), Stop())
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        living = list(self._processes)
        while living and time.monotonic() < deadline_s:
            poller = zmq.Poller()
            for fd in (self._signals.fd, *(child.pidfd for child in living)):
                poller.register(fd, zmq.POLLIN)
            events = dict(poller.poll(int(1000 * WATCH_INTERVAL_S)))
            if self._signals.fd in events and self._is_asked_to_end():
                return
            living = [child for child in living if child.process.poll() is None]

    def _ask(self, children: Sequence[Child], stop: Stop) -> None:
        for child in children:
            if child.is_ready:
                self._tell(child, stop)
            else:
                child.process.terminate()  # still starting: it holds nothing worth a clean end
