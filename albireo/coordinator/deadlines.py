"""How long requests may wait for their first step (`--queue-timeout`)."""

import heapq

from albireo.coordinator.request import Request, State

MIN_ENTRIES = 64
"""A heap of fewer is not worth tidying."""


class QueueDeadlines:
    """Requests that have not had a step yet, by the end of their wait: the first of them is all that is looked at,
    whatever the order in which they would start. The scheduler clears the deadline of one that starts.

    Entries of requests that have started or ended stay until they are first or the majority: under priorities one that
    waits long would else keep all that came and went behind it.
    """

    def __init__(self, timeout_s: float) -> None:
        """0: nobody's wait ends."""
        self.timeout_s = timeout_s
        self._timeout_ns = round(timeout_s * 1e9)
        self._heap: list[tuple[int, int, Request]] = []
        """Deadline, number in order of arrival, whose it is."""
        self._max_entries = MIN_ENTRIES

    def __len__(self) -> int:
        """Requests that are watched, and entries that are left of others."""
        return len(self._heap)

    def watch(self, request: Request, since_ns: int) -> None:
        """The request waits for its first step, and has since then."""
        if not self._timeout_ns:
            return
        request.deadline_ns = since_ns + self._timeout_ns
        heapq.heappush(self._heap, (request.deadline_ns, request.arrival, request))
        if len(self._heap) > self._max_entries:
            self._heap = [entry for entry in self._heap if _counts(entry)]
            heapq.heapify(self._heap)
            self._max_entries = max(MIN_ENTRIES, 2 * len(self._heap))

    def take_expired(self, now_ns: int) -> list[Request]:
        """Those whose wait is over, longest first; they are not watched any more."""
        expired: list[Request] = []
        while self._heap and (self._heap[0][0] <= now_ns or not _counts(self._heap[0])):
            entry = heapq.heappop(self._heap)
            if _counts(entry):
                entry[-1].deadline_ns = 0
                expired.append(entry[-1])
        return expired


def _counts(entry: tuple[int, int, Request]) -> bool:
    """Whether its request still waits for this deadline: it may have started, ended, or begun to wait anew."""
    deadline_ns, _, request = entry
    return request.deadline_ns == deadline_ns and request.state in (State.NEW, State.WAITING)
