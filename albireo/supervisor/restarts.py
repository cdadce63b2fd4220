"""How often what dies is started again, and when it is better to give up: systemd, or a person, decides then."""

from collections import Counter, deque
from typing import Final

MAX_PER_MINUTE: Final = 20
"""Deaths of processes that had been ready. What kills more often than that is no accident."""
MAX_FAILED_STARTS: Final = 3
"""In a row, in one place: processes that died, or were killed for taking too long, before they were ready."""
FIRST_DELAY_S: Final = 0.25
"""Before a start that follows a failed one; twice as long each time. Who was ready is replaced at once."""


class Restarts:
    """Counts the deaths of the processes without which nothing can be served."""

    def __init__(self) -> None:
        self._deaths_s: deque[float] = deque()
        self._num_failed: Counter[str] = Counter()
        """By place: a grammar process that starts says nothing of its coordinator's starts."""

    def started(self, place: str) -> None:
        """A process that takes another's place is ready."""
        del self._num_failed[place]

    def delay_s(self, place: str, was_ready: bool, now_s: float) -> float | None:
        """Seconds until another may be started in place of one that has died. None: give up."""
        if not was_ready:
            self._num_failed[place] += 1
            if self._num_failed[place] >= MAX_FAILED_STARTS:
                return None
            return FIRST_DELAY_S * float(2 ** (self._num_failed[place] - 1))
        while self._deaths_s and self._deaths_s[0] < now_s - 60:
            self._deaths_s.popleft()
        self._deaths_s.append(now_s)
        return None if len(self._deaths_s) > MAX_PER_MINUTE else 0.0


class GrammarRestarts:
    """The same for grammar processes, without which all but structured output is served: never given up for good."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._deaths_s: deque[float] = deque()

    def delay_s(self, now_s: float) -> float:
        """Seconds until another may be started: none, or as long as it takes until the minute is over."""
        while self._deaths_s and self._deaths_s[0] < now_s - 60:
            self._deaths_s.popleft()
        self._deaths_s.append(now_s)
        if len(self._deaths_s) <= self._per_minute:
            return 0.0
        return self._deaths_s[-1 - self._per_minute] + 60 - now_s
