"""Whether the engine gets on: processes whose loops all turn may still wait for each other."""

from albireo.shm.stats import EngineStats
from albireo.supervisor.rank_watch import MAX_TICK_NS


class EngineWatch:
    """Remembers for how long there has been work and no step, neither confirmed nor under way. What `/health` says
    too, but for an engine that has just got other workers, or a rank that computes: that one has `RankWatch`."""

    def __init__(self, stats: EngineStats, timeout_ns: int) -> None:
        self._stats = stats
        self._timeout_ns = timeout_ns
        self._last_step = 0
        self._waited_ns = 0
        self._last_look_ns = 0

    def is_stuck(self, now_ns: int, is_whole: bool) -> bool:
        """To be called several times a second. `is_whole`: the coordinator has its workers."""
        tick_ns = min(now_ns - self._last_look_ns, MAX_TICK_NS) if self._last_look_ns else 0
        self._last_look_ns = now_ns
        engine = self._stats.engine[0]
        step, has_work = int(engine["num_confirmed_steps"]), int(engine["num_running"]) + int(engine["num_waiting"]) > 0
        waits = is_whole and has_work and step == self._last_step and not self._stats.workers["running_step"].any()
        self._waited_ns = self._waited_ns + tick_ns if waits else 0
        self._last_step = step
        return self._waited_ns >= self._timeout_ns
