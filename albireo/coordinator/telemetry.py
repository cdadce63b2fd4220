"""The engine's counters, as the coordinator writes them into shared memory for whoever asks."""

from bisect import bisect_left
from typing import Any

import numpy.typing as npt

from albireo.coordinator.scheduler import Scheduler
from albireo.shm.flight import Part, Recorder
from albireo.shm.stats import ITERATION_TOKENS


class Telemetry:
    """Writer of ENGINE_STATS."""

    def __init__(self, stats: npt.NDArray[Any], recorder: Recorder) -> None:
        self._stats = stats
        self._iteration_tokens = stats["iteration_tokens"]["buckets"][0]
        self._iteration_tokens_sum = stats["iteration_tokens"]["sum"]
        self._recorder = recorder
        self._device_ns = 0
        self._exposed_ns = 0
        self._last_end_ns = 0

    def observe_plan(self, num_tokens: int) -> None:
        """A published step: the tokens of its prompts' chunks and of its decode rows."""
        self._iteration_tokens[bisect_left(ITERATION_TOKENS, num_tokens)] += 1
        self._iteration_tokens_sum += num_tokens

    def observe_step(self, step: int, begin_ns: int, end_ns: int, has_work: bool) -> None:
        """A confirmed step's time on the device. `has_work`: whether anything is left to do behind it; the gap until
        the next step is exposed then, else idle."""
        self._device_ns += end_ns - begin_ns
        if self._last_end_ns:
            # a device's clock may have been put right between the two
            self._exposed_ns += max(0, begin_ns - self._last_end_ns)
            self._recorder.record(Part.EXPOSED, step, self._last_end_ns, begin_ns)
        self._last_end_ns = end_ns if has_work else 0

    def publish(
        self, now_ns: int, scheduler: Scheduler, num_planned: int, num_confirmed: int, run_ahead_depth: int
    ) -> None:
        """Once a coordinator step: about twenty stores."""
        stats, counters, pool = self._stats, scheduler.counters, scheduler.pool
        if int(stats["num_confirmed_steps"][0]) != num_confirmed or not scheduler.has_work:
            stats["progress_ns"] = now_ns
        stats["heartbeat_ns"] = now_ns
        stats["num_steps"] = num_planned
        stats["num_confirmed_steps"] = num_confirmed
        stats["num_running"] = scheduler.slots.num_running
        stats["num_waiting"] = len(scheduler.waiting)
        stats["num_blocks"] = pool.num_blocks
        stats["num_blocks_used"] = pool.num_used
        stats["num_blocks_cached"] = pool.num_cached
        stats["prefix_cache_queries"] = counters.prefix_cache_queries
        stats["prefix_cache_hits"] = counters.prefix_cache_hits
        stats["prompt_tokens"] = counters.prompt_tokens
        stats["generation_tokens"] = counters.generation_tokens
        stats["num_preemptions"] = counters.num_preemptions
        stats["finished_stop"] = counters.finished_stop
        stats["finished_length"] = counters.finished_length
        stats["finished_abort"] = counters.finished_abort
        stats["step_device_ns"] = self._device_ns
        stats["step_exposed_ns"] = self._exposed_ns
        stats["run_ahead_depth"] = run_ahead_depth
