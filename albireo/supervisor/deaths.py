"""Who has died, and what follows from it.

    worker        all ranks are started anew, since what they exchanged is half done. The coordinator halts, keeps its
                  requests, and plans them again when the workers are back.
    coordinator   another takes its place, with a grammar process of its own. The workers stay: they finish the steps
                  that were planned. Frontends hand all that they hold to the new one.
    frontend      its connections end with it, its requests are aborted; another takes its place.
    grammar       another takes its place.

Deaths that are too many (`Restarts`) end the server with exit code 1.
"""

import time
from collections.abc import Callable

from albireo import sockets
from albireo.config import CoordinatorConfig, FrontendConfig, GrammarConfig, WorkerConfig
from albireo.limits import GRAMMAR_RESTARTS_PER_MINUTE
from albireo.messages import FromSupervisor, FrontendDown, GrammarDown, ReplicaDown, WorkersDown
from albireo.startup_display import StartupDisplay
from albireo.supervisor.child_process import Child, ChildSpec
from albireo.supervisor.engine_memory import EngineMemory
from albireo.supervisor.processes import Processes
from albireo.supervisor.restarts import GrammarRestarts, Restarts


class EngineStopped(Exception):
    """The engine ends; carries the exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Deaths:
    """Of one replica's processes, while the engine is up; the first one's also of the frontends. Every method may raise
    EngineStopped: a death too many."""

    def __init__(
        self,
        replica: int,
        processes: Processes,
        memory: EngineMemory,
        display: StartupDisplay,
        tell: Callable[[Child, FromSupervisor], None],
        restarts: Restarts,
    ) -> None:
        """`tell`: sends a message to a process. `restarts`: of all replicas."""
        self._replica = replica
        self._processes = processes
        self._own = processes.of(replica)
        self._memory = memory
        self._display = display
        self._tell = tell
        self._restarts = restarts
        self._grammar_restarts = GrammarRestarts(GRAMMAR_RESTARTS_PER_MINUTE)
        self._halted: list[ChildSpec] | None = None
        """The workers to start when the coordinator has halted; None: it is not asked to."""
        self._halt_delay_s = 0.0
        """How long they wait then."""
        self.are_too_many = False

    @property
    def awaits_halt(self) -> bool:
        """There are no workers, and others start when the coordinator has halted."""
        return self._halted is not None

    def follow(self, child: Child, how: str) -> None:
        """It has died; `how` is the rest of that sentence."""
        self.remove(child)
        words = f"{child.name} (pid {child.process.pid}) {how}"
        match child.config:
            case WorkerConfig():
                self.lose_workers(f"{words}; all ranks are started again", lost=child)
            case CoordinatorConfig():
                self._lose_coordinator(child, f"{words}; another takes its place")
            case FrontendConfig(index=index):
                self._memory.lose_frontend(index)
                self._lose_frontend(child, f"{words}; its connections are closed, another takes its place")
            case GrammarConfig():
                self._lose_grammar(child, words)

    def forgive(self, child: Child) -> None:
        """It has taken another's place, and is ready: the starts before it that failed do not count any more. Of ranks
        the last one counts, since all are started again if any fails."""
        is_rank = isinstance(child.config, WorkerConfig)
        if not is_rank or all(rank.is_ready for rank in self._own.all(WorkerConfig)):
            self._restarts.started(_place(child))

    def remove(self, child: Child) -> None:
        """It is gone, or goes now."""
        self._processes.remove(child)
        self._memory.forget(child.name)

    def lose_workers(self, words: str, lost: Child | None = None) -> None:
        """All ranks go, and come back when the coordinator has halted. `lost`: one that is gone already."""
        workers = self._own.all(WorkerConfig)
        specs = [worker.spec for worker in workers] + ([] if lost is None else [lost.spec])
        was_ready = all(worker.is_ready for worker in workers) and (lost is None or lost.is_ready)
        delay_s = self._delay_s(words, f"workers-{self._replica}", was_ready)
        for worker in workers:
            self.remove(worker)
        self._halted = [spec.successor() for spec in specs]
        self._halt_delay_s = delay_s
        self._send_requests_elsewhere()
        coordinator = self._own.coordinator
        if coordinator is None or not coordinator.coordinator:
            self.start_workers()  # nobody has the rings
            return
        coordinator.coordinator, coordinator.is_ready = "", False
        self._tell(coordinator, WorkersDown())

    def restart_stuck(self) -> None:
        """The replica has work and does not get on with it, though every process answers."""
        self.lose_workers(f"replica {self._replica} has work and confirms no step; all its ranks are started again")

    def start_workers(self) -> None:
        """The rings are ours: begins them anew, for workers that come."""
        if self._halted is None:
            return
        self._memory.reset()
        specs, self._halted = self._halted, None
        self._processes.start(specs, self._halt_delay_s)
        self._display.note(self._memory.leave_record())

    def _lose_coordinator(self, child: Child, words: str) -> None:
        self._memory.lose_coordinator()
        sockets.remove_coordinator(child.config.run_dir, child.identity)
        delay_s = self._delay_s(words, _place(child), child.has_served)  # it may be without workers just now
        self._send_requests_elsewhere()
        grammars = self._own.all(GrammarConfig)
        for grammar in grammars:
            self.remove(grammar)
        self._processes.start([each.spec.successor() for each in (child, *grammars)], delay_s)
        if child.fatal is not None and self._own.all(WorkerConfig):
            # ranks that differ: nothing that they hold is right
            self.lose_workers(f"the ranks are started again: {child.fatal.message}")
        self.start_workers()
        self._display.note(self._memory.leave_record())

    def _send_requests_elsewhere(self) -> None:
        """Tells the frontends that this replica computes nothing for now."""
        for frontend in self._processes.all(FrontendConfig):
            if frontend.engines.pop(self._replica, None):
                self._tell(frontend, ReplicaDown(self._replica))

    def _lose_frontend(self, child: Child, words: str) -> None:
        delay_s = self._delay_s(words, _place(child), child.has_served)
        for coordinator in self._processes.all(CoordinatorConfig):
            if coordinator.is_heard:
                self._tell(coordinator, FrontendDown(child.identity))
        self._processes.start([child.spec.successor()], delay_s)

    def _lose_grammar(self, child: Child, words: str) -> None:
        """The engine goes on without it, and as a rule another takes its place."""
        coordinator = self._own.coordinator
        delay_s = self._grammar_restarts.delay_s(time.monotonic())
        if coordinator is not None and coordinator.is_heard:
            self._tell(coordinator, GrammarDown(child.process.pid, restarts=not delay_s))
        rest = "another takes its place" if not delay_s else "so often that it is not started again for a minute"
        self._display.error(f"{words}; {rest}")
        self._processes.start([child.spec.successor()], delay_s)

    def _delay_s(self, words: str, place: str, was_ready: bool) -> float:
        """Says what happened; returns how long to wait before another start. Raises EngineStopped."""
        delay_s = self._restarts.delay_s(place, was_ready, time.monotonic())
        if delay_s is None:
            self.are_too_many = True
            self._display.error(words.partition("; ")[0] + "; that was too often, stopping everything")
            raise EngineStopped(1)
        self._display.error(words)
        return delay_s


def _place(child: Child) -> str:
    """Whose failed starts count together."""
    return f"workers-{child.config.replica}" if isinstance(child.config, WorkerConfig) else child.name
