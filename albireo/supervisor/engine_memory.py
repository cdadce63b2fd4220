"""A replica's shared memory in the supervisor's hands: what it watches, and what it begins anew after a death."""

from albireo.config import SchedulerConfig, SegmentFds
from albireo.engine_file import leave_flight_record
from albireo.engine_segments import reset_rings
from albireo.limits import ENGINE_PROGRESS_TIMEOUT_NS
from albireo.shm.flight import map_beat
from albireo.shm.routes import clear_load
from albireo.shm.stats import EngineStats
from albireo.supervisor.engine_watch import EngineWatch
from albireo.supervisor.process_watch import ProcessWatch
from albireo.supervisor.rank_watch import RankWatch


class EngineMemory:
    """Of one replica, while it runs."""

    def __init__(
        self,
        segments: SegmentFds,
        scheduler: SchedulerConfig,
        num_workers: int,
        timeout_s: float,
        replica: int = 0,
        num_replicas: int = 1,
    ) -> None:
        """`timeout_s`: how long a process may be silent before it counts as stuck."""
        self.timeout_s = timeout_s
        self._replica = replica
        self._num_replicas = num_replicas
        self._segments = segments
        self._scheduler = scheduler
        self._stats = stats = EngineStats(segments.stats)
        self._workers = stats.workers
        self.engine = EngineWatch(stats, ENGINE_PROGRESS_TIMEOUT_NS)
        self.ranks = RankWatch(self._workers, int(timeout_s * 1e9), first=replica * num_workers)
        beats = {name: map_beat(fd) for name, fd in segments.flight.items() if not name.startswith("worker")}
        self.processes = ProcessWatch(beats, int(timeout_s * 1e9))

    def reset(self) -> None:
        """No worker lives and the coordinator has halted: what was planned is forgotten."""
        reset_rings(self._segments, self._scheduler, len(self._workers))
        self._workers[:] = 0

    def lose_coordinator(self) -> None:
        """It has died: nothing runs or waits here."""
        self._stats.clear_gauges()

    def lose_frontend(self, index: int) -> None:
        """It has died: its requests are no replica's work. For the first replica, which has what frontends share."""
        clear_load(self._segments.routes, self._num_replicas, index)

    def leave_record(self) -> str:
        """What every process of the replica did last, in a file; the rest of a sentence that says where."""
        try:
            path = leave_flight_record(self._segments.flight, self._replica)
            return f"the last steps: albireo-run trace --record {path}"
        except FileExistsError:  # another death in the same second
            return "the last steps are in the record of a moment ago"
        except OSError as error:
            return f"the last steps could not be saved: {error}"

    def forget(self, name: str) -> None:
        """This process is gone: the next of its name has not begun."""
        self.processes.forget(name)
