"""Is a preempted request's KV cheaper to copy out and in again, or to compute again? From what steps have taken so far.

A step with prompt chunks takes longer than one that only decodes by what its chunks cost; what its copies took the
device says itself. Both are linear here: time per token, time per block. Attention over long contexts makes computing
dearer than that, which errs on the side of what was always done.
"""

from collections import deque
from typing import Final

from albireo.shm.plan_ring import PlanCounts

TOKENS_REMEMBERED: Final = 8192
"""Of prompts, over which their time is averaged: a few large chunks. Short ones, dear for their few tokens, weigh
little."""
BLOCKS_REMEMBERED: Final = 1024
STEPS_REMEMBERED: Final = 32
PROBE_SHARE: Final = 0.2
"""Requests that seem cheaper to compute again are copied now and then all the same, lest one slow measurement decide
for ever; what that seems to waste is at most this share of the time that computing takes."""


class Rate:
    """Time per unit over about the last `memory` units, 0 before the first."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._time_ns = self._units = 0.0

    @property
    def ns(self) -> float:
        return self._time_ns / self._units if self._units else 0.0

    def add(self, time_ns: float, units: int) -> None:
        faded = max(0.0, 1 - units / self._memory)
        self._time_ns = faded * self._time_ns + time_ns
        self._units = faded * self._units + units


class SwapCosts:
    """Hears of every step twice: when it is planned, and when it is confirmed."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._planned: deque[PlanCounts] = deque()
        self._decode_step, self._token, self._block = (
            Rate(memory) for memory in (STEPS_REMEMBERED, TOKENS_REMEMBERED, BLOCKS_REMEMBERED)
        )
        self._to_waste_ns = 0.0

    def expect(self, counts: PlanCounts) -> None:
        """A step was planned."""
        self._planned.append(counts)

    def observe(self, begin_ns: int, end_ns: int, swap_ns: int) -> None:
        """The oldest planned step was confirmed: TOKEN_HEADER's times of it."""
        counts = self._planned.popleft()
        num_copies, duration_ns = counts.num_swap_outs + counts.num_swap_ins, end_ns - begin_ns
        if num_copies:
            self._block.add(max(0, swap_ns), num_copies)
        if counts.num_chunk_tokens:
            beside_ns = self._decode_step.ns if counts.num_rows else 0.0
            self._token.add(max(0.0, duration_ns - beside_ns), counts.num_chunk_tokens)
        elif counts.num_rows:
            self._decode_step.add(duration_ns, 1)

    def forget_planned(self) -> None:
        """Steps in flight will not be confirmed."""
        self._planned.clear()

    def prefers_swap(self, num_blocks: int) -> bool:
        """Whether to copy so many full blocks out, and in again, rather than to compute their tokens again. What was
        never measured is tried."""
        copying_ns = 2 * num_blocks * self._block.ns
        computing_ns = num_blocks * self._block_size * self._token.ns
        if not copying_ns or not computing_ns or copying_ns <= computing_ns:
            return True
        self._to_waste_ns += PROBE_SHARE * computing_ns
        if self._to_waste_ns < copying_ns - computing_ns:
            return False
        self._to_waste_ns = 0.0
        return True
