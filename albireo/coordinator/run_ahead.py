"""How many steps past the last confirmed one are planned."""

LONG_STEP_NS = 20_000_000
"""A coordinator needs well under a millisecond to confirm a step and plan the next, but where it shares cores with a
CPU device it may wait several for its turn (docs/benchmarks/host-path.md). One plan in hand keeps a device busy that
takes longer; every further one only makes a new prompt wait for one more step."""


class RunAhead:
    """The depth K, shrunk to 1 while steps are long."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._step_ns = 0

    @property
    def depth(self) -> int:
        return min(self._limit, 1) if self._step_ns > LONG_STEP_NS else self._limit

    def observe(self, begin_ns: int, end_ns: int) -> None:
        """A confirmed step's time on the device; the depth follows a moving average over about eight steps."""
        duration = end_ns - begin_ns
        self._step_ns = duration if not self._step_ns else (7 * self._step_ns + duration) // 8
