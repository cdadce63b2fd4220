"""Generations that wait for their first step, and which of them gives way when the queue is full."""

from albireo.frontend.generation import Generation


class WaitingGenerations:
    """Those of one replica and frontend, by priority. They have been submitted."""

    def __init__(self) -> None:
        self._by_priority: dict[int, dict[int, Generation]] = {}
        """By request id, in the order in which they came here."""
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, generation: Generation) -> None:
        self._by_priority.setdefault(priority_of(generation), {})[generation.request_id] = generation
        self._size += 1

    def discard(self, generation: Generation) -> None:
        """It has started, ended or left, if it was here."""
        priority = priority_of(generation)
        same = self._by_priority.get(priority, {})
        if same.pop(generation.request_id, None) is None:
            return
        self._size -= 1
        if not same:
            del self._by_priority[priority]

    def last_behind(self, priority: int) -> Generation | None:
        """The newest of the lowest priority, if that is lower than `priority`. Those of a response that has begun stay:
        it would end with them."""
        for other in sorted(self._by_priority, reverse=True):
            if other <= priority:
                break
            for generation in reversed(self._by_priority[other].values()):
                if not generation.listener.has_started:
                    return generation
        return None


def priority_of(generation: Generation) -> int:
    assert generation.submission is not None, "a live generation was submitted"
    return generation.submission.priority
