"""What the coordinator logs of its steps: those that took unusually long, and requests that were preempted or had none
in time.

At most one line of each in ten seconds; what was not said in between is counted in the next.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from albireo import logs
from albireo.coordinator.request import Request

log = logging.getLogger(__name__)

INTERVAL_NS: Final = 10_000_000_000
SLOW_FACTOR: Final = 5
"""Times the median of its kind. Steps of one kind differ by less than three: contexts grow, cores are shared."""
MIN_SLOW_NS: Final = 100_000_000
"""A shorter step is nobody's trouble, however short the others are."""
NUM_REMEMBERED: Final = 32
MIN_REMEMBERED: Final = 8


@dataclass(frozen=True, slots=True)
class Preemption:
    """A request that had to leave, since other rows needed blocks and none were free."""

    frontend: int
    request_id: int
    num_tokens: int
    """Of its sequence: to be computed again, but for what the prefix cache still has then, and unless `is_kept`."""
    is_kept: bool
    """Its blocks go to the swap space."""
    num_needed_blocks: int
    num_free_blocks: int
    num_blocks: int
    """Of the whole cache."""


class StepLog:
    """Lives in the coordinator's loop; the times are handed in."""

    def __init__(self) -> None:
        self._in_flight: deque[tuple[int, int]] = deque()
        """Decode rows and prompt tokens of planned steps, the oldest first."""
        self._durations: dict[tuple[int, int], deque[int]] = {}
        """Of the last steps in ns, by kind: how many rows and how many prompt tokens, as powers of two."""
        self._slow_since_ns = -INTERVAL_NS
        self._num_slow = 0
        """Not said yet."""
        self._preempted_since_ns = -INTERVAL_NS
        self._preemptions: list[Preemption] = []
        """Not said yet."""
        self._expired_since_ns = -INTERVAL_NS
        self._num_expired = 0
        """Not said yet."""

    def planned(self, num_rows: int, num_chunk_tokens: int) -> None:
        self._in_flight.append((num_rows, num_chunk_tokens))

    def forget(self) -> None:
        """No planned step will be confirmed."""
        self._in_flight.clear()

    def confirmed(self, step: int, device_ns: int, exposed_ns: int, now_ns: int) -> None:
        """The oldest step in flight: its time on the device, and how long the device waited for it."""
        num_rows, num_chunk_tokens = self._in_flight.popleft()
        kind = num_rows.bit_length(), num_chunk_tokens.bit_length()
        durations = self._durations.setdefault(kind, deque(maxlen=NUM_REMEMBERED))
        duration_ns = device_ns + exposed_ns
        if duration_ns > MIN_SLOW_NS and len(durations) >= MIN_REMEMBERED:
            usual_ns = median(durations)
            if duration_ns > SLOW_FACTOR * usual_ns:
                self._num_slow += 1
                if now_ns - self._slow_since_ns >= INTERVAL_NS:
                    self._slow_since_ns = now_ns
                    self._say_slow(step, num_rows, num_chunk_tokens, duration_ns, exposed_ns, usual_ns)
        durations.append(duration_ns)

    def _say_slow(
        self, step: int, num_rows: int, num_chunk_tokens: int, duration_ns: int, exposed_ns: int, usual_ns: float
    ) -> None:
        where = "before its plan was there" if 2 * exposed_ns > duration_ns else "on the device"
        others, self._num_slow = self._num_slow - 1, 0
        log.warning(
            "step %d took %.0f ms, most of it %s; as a rule %.0f ms: rows %d, prompt tokens %d, exposed %.0f ms%s",
            step, duration_ns / 1e6, where, usual_ns / 1e6, num_rows, num_chunk_tokens, exposed_ns / 1e6,
            f"; slow steps before it that were not logged: {others}" if others else "",
            extra=logs.fields(
                event="slow_step", step=step, duration_ms=duration_ns / 1e6, usual_ms=usual_ns / 1e6, num_rows=num_rows,
                num_chunk_tokens=num_chunk_tokens, exposed_ms=exposed_ns / 1e6, num_unlogged=others,
            ),
        )  # fmt: skip

    def preempted(self, preemptions: Sequence[Preemption], now_ns: int) -> None:
        """Since the last call; as a rule none."""
        self._preemptions += preemptions
        if not self._preemptions or now_ns - self._preempted_since_ns < INTERVAL_NS:
            return
        self._preempted_since_ns = now_ns
        (*others, last), self._preemptions = self._preemptions, []
        log.warning(
            "request %d of frontend %d is preempted, the KV cache is full: rows that need another block %d, free "
            "blocks %d of %d; %s%s",
            last.request_id, last.frontend, last.num_needed_blocks, last.num_free_blocks, last.num_blocks,
            f"its {last.num_tokens} tokens go to the swap space" if last.is_kept
            else f"up to {last.num_tokens} tokens are computed again",
            f"; before it: {len(others)} requests, {sum(each.num_tokens for each in others)} tokens" if others else "",
            extra=logs.fields(
                event="preemption", request_id=last.request_id, frontend=last.frontend, num_blocks=last.num_blocks,
                num_free_blocks=last.num_free_blocks, num_needed_blocks=last.num_needed_blocks,
                num_tokens=last.num_tokens, is_kept=last.is_kept, num_unlogged=len(others),
            ),
        )  # fmt: skip

    def expired(
        self, requests: Sequence[Request], timeout_s: float, num_waiting: int, num_running: int, now_ns: int
    ) -> None:
        """Just now. `num_waiting`, `num_running`: what is there without them."""
        self._num_expired += len(requests)
        if not requests or now_ns - self._expired_since_ns < INTERVAL_NS:
            return
        self._expired_since_ns = now_ns
        last, others, self._num_expired = requests[-1], self._num_expired - 1, 0
        log.warning(
            "request %d of frontend %d has waited %g s for its first step and ends with 503: running %d, still waiting "
            "%d%s",
            last.request_id, last.frontend, timeout_s, num_running, num_waiting,
            f"; before it: {others} requests" if others else "",
            extra=logs.fields(
                event="queue_timeout", request_id=last.request_id, frontend=last.frontend, timeout_s=timeout_s,
                num_running=num_running, num_waiting=num_waiting, num_unlogged=others,
            ),
        )  # fmt: skip
