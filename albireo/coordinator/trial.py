"""Who kills workers? Suspects (`Request.is_suspect`) are tried one by one, so that the next death of the workers is
laid to the right request: one is admitted when all that run have got on, and nobody else before it has got on itself.
"""

from albireo.coordinator.request import Request, State
from albireo.coordinator.slot_table import SlotTable


class Trial:
    """The suspect that was admitted last."""

    def __init__(self, slots: SlotTable) -> None:
        self._slots = slots
        self._request: Request | None = None

    @property
    def is_on(self) -> bool:
        """It runs, and has not got on yet."""
        tried = self._request
        if tried is None:
            return False
        if tried.state is State.RUNNING and not self._has_got_on(tried):
            return True
        self._request = None
        return False

    def keeps_out(self, request: Request) -> bool:
        """Whether the request, which waits, cannot be admitted yet."""
        return self.is_on or (request.is_suspect and not all(map(self._has_got_on, self._slots.running())))

    def begin(self, request: Request) -> None:
        """The request has been admitted."""
        if request.is_suspect:
            self._request = request

    def stop(self) -> None:
        """The workers have died."""
        self._request = None

    def _has_got_on(self, request: Request) -> bool:
        """Whether it has had a token since it was admitted."""
        return int(self._slots.num_tokens[request.slot]) > request.tokens.size
