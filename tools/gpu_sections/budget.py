"""How much of the time is left, and what still fits into it."""

from collections.abc import Callable

RESERVE_S = 6.0
"""Kept back for stopping a server and printing the table."""


class Budget:
    """Counts from its making."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds, self._clock = seconds, clock
        self._begin = clock()

    def elapsed_s(self) -> float:
        return self._clock() - self._begin

    def left_s(self) -> float:
        """Never below 0; the reserve is not in it."""
        return max(0.0, self._seconds - RESERVE_S - self.elapsed_s())

    def timeout_s(self, least_s: float, most_s: float) -> float | None:
        """How long something may run that is of no use below `least_s`; None when that is not left."""
        left_s = self.left_s()
        return min(left_s, most_s) if left_s >= least_s else None
