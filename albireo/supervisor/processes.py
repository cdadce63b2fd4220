"""The processes of one engine: those that live, those that are to come, and spares."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Final

import zmq

from albireo.config import ChildConfig, CoordinatorConfig
from albireo.settings import LiveSettings
from albireo.supervisor.child_process import Child, ChildSpec, Spare

SPARE_DELAY_S: Final = 5.0
"""After the last start: importing takes a core for a second or two, which the new processes need more."""


class Processes:
    """Starts and removes them; what follows from a death is the supervisor's business."""

    def __init__(self, poller: zmq.Poller, settings: LiveSettings | None) -> None:
        """`poller` gets the pidfd of each that lives. `settings`: what those that start are told."""
        self._poller = poller
        self._settings = settings
        self._living: dict[str, Child] = {}
        self._to_start: list[tuple[float, ChildSpec]] = []
        """When (CLOCK_MONOTONIC), and what."""
        self._spares: dict[str, Spare] = {}
        """By the name of the process whose place they would take."""
        self._coordinators: dict[int, str] = {}
        """Identity of each replica's coordinator that lives, or is to come."""
        self._changed_s = 0.0
        """When one was started last."""

    def __iter__(self) -> Iterator[Child]:
        """Those that live, as far as is known; safe to remove some meanwhile."""
        return iter(list(self._living.values()))

    def __contains__(self, child: Child) -> bool:
        return child.identity in self._living

    def get(self, identity: str) -> Child | None:
        return self._living.get(identity)

    def all(self, kind: type[ChildConfig]) -> list[Child]:
        """Those that live, of one kind."""
        return [child for child in self if isinstance(child.config, kind)]

    def of(self, replica: int) -> "OfReplica":
        return OfReplica(self, replica)

    def start(self, specs: Sequence[ChildSpec], delay_s: float = 0.0) -> None:
        """Now, or when `start_due` is called after the delay."""
        at_s = time.monotonic() + delay_s
        self._to_start += [(at_s, spec) for spec in specs]
        self.start_due()

    def start_due(self) -> None:
        now_s = time.monotonic()
        due = [spec for at_s, spec in self._to_start if at_s <= now_s]
        self._to_start = [(at_s, spec) for at_s, spec in self._to_start if at_s > now_s]
        for spec in due:
            self._spawn(spec)

    @property
    def to_come(self) -> list[ChildConfig]:
        """Of those that are to be started."""
        return [spec.config for _, spec in self._to_start]

    def give_up(self, kind: type[ChildConfig]) -> None:
        """Those that are to come do not."""
        self._to_start = [(at_s, spec) for at_s, spec in self._to_start if not isinstance(spec.config, kind)]

    def due_in_s(self, most_s: float) -> float:
        """Seconds until one is to be started, `most_s` where that is later, or none is."""
        due_s = min((at_s for at_s, _ in self._to_start), default=math.inf) - time.monotonic()
        return max(0.0, min(most_s, due_s))

    def remove(self, child: Child) -> None:
        """It is gone, or goes now."""
        self._poller.unregister(child.pidfd)
        child.bury()
        del self._living[child.identity]

    def keep_spares(self) -> None:
        """One for each that takes long to start, once all has been quiet for a while."""
        if self._to_start or time.monotonic() - self._changed_s < SPARE_DELAY_S:
            return
        for child in self:
            if child.spec.preload and child.name not in self._spares:
                self._spares[child.name] = Spare(child.spec)

    def end_spares(self) -> None:
        for spare in self._spares.values():
            spare.end()
        self._spares.clear()

    def _spawn(self, spec: ChildSpec) -> None:
        if isinstance(spec.config, CoordinatorConfig):
            self._coordinators[spec.config.replica] = spec.config.identity
        spare = self._spares.pop(spec.config.name, None)
        if spare is not None and spare.process.poll() is not None:
            spare.end()
            spare = None
        spec = spec.beside(self._coordinators.get(spec.config.replica, ""))
        child = Child(spec if self._settings is None else spec.under(self._settings.current), spare)
        self._changed_s = child.started_s
        self._living[child.identity] = child
        self._poller.register(child.pidfd, zmq.POLLIN)


class OfReplica:
    """A replica's coordinator, workers and grammar process among all `Processes`."""

    def __init__(self, processes: Processes, replica: int) -> None:
        self._processes = processes
        self._replica = replica

    def all(self, kind: type[ChildConfig]) -> list[Child]:
        """Those that live, of one kind."""
        return [child for child in self._processes.all(kind) if child.config.replica == self._replica]

    @property
    def coordinator(self) -> Child | None:
        return next(iter(self.all(CoordinatorConfig)), None)

    def are_to_come(self, kind: type[ChildConfig]) -> bool:
        return any(isinstance(each, kind) and each.replica == self._replica for each in self._processes.to_come)
