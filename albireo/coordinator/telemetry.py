"""The engine's counters, as the coordinator writes them into shared memory for whoever asks."""

from bisect import bisect_left
from typing import Any

import numpy.typing as npt

from albireo.coordinator.results import SchedulerCounters
from albireo.coordinator.scheduler import Scheduler
from albireo.shm.flight import Part, Recorder
from albireo.shm.stats import ITERATION_TOKENS


class Telemetry:
    """Writer of ENGINE_STATS."""

    def __init__(self, stats: npt.NDArray[Any], recorder: Recorder, counters: SchedulerCounters) -> None:
        """`counters`: the scheduler's; they go on where a coordinator that has died left them."""
        self._stats = stats
        for name in counters.__slots__:
            setattr(counters, name, int(stats[name][0]))
        self._swapped_before = [int(stats[name][0]) for name in ("swapped_out_blocks", "swapped_in_blocks")]
        """Likewise."""
        self._iteration_tokens = stats["iteration_tokens"]["buckets"][0]
        self._iteration_tokens_sum = stats["iteration_tokens"]["sum"]
        self._recorder = recorder
        self._device_ns = int(stats["step_device_ns"][0])
        self._exposed_ns = int(stats["step_exposed_ns"][0])
        self._last_end_ns = 0

    def observe_plan(self, num_tokens: int) -> None:
        """A published step: the tokens of its prompts' chunks and of its decode rows."""
        self._iteration_tokens[bisect_left(ITERATION_TOKENS, num_tokens)] += 1
        self._iteration_tokens_sum += num_tokens

    def observe_step(self, step: int, begin_ns: int, end_ns: int, has_work: bool) -> int:
        """A confirmed step's time on the device. `has_work`: whether anything is left to do behind it; the gap until
        the next step is exposed then, else idle. Returns how much was exposed before this one, in ns."""
        self._device_ns += end_ns - begin_ns
        exposed_ns = 0
        if self._last_end_ns:
            # a device's clock may have been put right between the two
            exposed_ns = max(0, begin_ns - self._last_end_ns)
            self._exposed_ns += exposed_ns
            self._recorder.record(Part.EXPOSED, step, self._last_end_ns, begin_ns)
        self._last_end_ns = end_ns if has_work else 0
        return exposed_ns

    def halt(self) -> None:
        """The workers are gone: until their successors' first step there is no device that could wait."""
        self._last_end_ns = 0

    def publish(
        self,
        now_ns: int,
        scheduler: Scheduler,
        num_planned: int,
        num_confirmed: int,
        run_ahead_depth: int,
        grammars_are_down: bool,
    ) -> None:
        """Once a coordinator step: about twenty stores."""
        stats, counters, pool, swap = self._stats, scheduler.counters, scheduler.pool, scheduler.swap
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
        outs_before, ins_before = self._swapped_before
        stats["swapped_out_blocks"] = outs_before + swap.num_swapped_out
        stats["swapped_in_blocks"] = ins_before + swap.num_swapped_in
        stats["num_swap_blocks_used"] = swap.pool.num_used
        stats["finished_stop"] = counters.finished_stop
        stats["finished_length"] = counters.finished_length
        stats["finished_abort"] = counters.finished_abort
        stats["step_device_ns"] = self._device_ns
        stats["step_exposed_ns"] = self._exposed_ns
        stats["run_ahead_depth"] = run_ahead_depth
        stats["grammars_are_down"] = grammars_are_down
