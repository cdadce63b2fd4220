"""What one HTTP response waits for: the output of its generations, or its client leaving."""

import asyncio
from collections.abc import Callable, Iterable

from albireo import limits
from albireo.frontend.generation import Generation


class ClientGoneError(Exception):
    """The client closed the connection, or was cut off. There is nobody to answer."""


Writer = Callable[[Iterable[Generation]], bool]
"""Writes what these generations have to say to the client; False, and nothing is taken, when it cannot do so now."""


class Output:
    """Collects the generations that have something to say until they are written, or the response's task takes them.

    What comes between a stream's begin and its end is written straight from `flush`, once a step: no future, no task
    switch. The task does the rest: begin, ends, errors, and clients that lag. While it waits for one, text piles up in
    the generations and goes out as one write later; beyond MAX_STREAM_BACKLOG_BYTES the client is cut off. Lives on
    the event loop.
    """

    __slots__ = (
        "_backlog_bytes", "_client_gone", "_cut_off", "_has_end", "_ready", "_streams", "_waiter", "has_started",
        "writer",
    )  # fmt: skip

    def __init__(self, streams: bool, cut_off: Callable[[], None]) -> None:
        """`streams`: whether text is wanted as it comes, or only the end. `cut_off` drops the connection."""
        self._streams = streams
        self._cut_off = cut_off
        self._ready: dict[Generation, None] = {}
        self._has_end = False
        self._waiter: asyncio.Future[None] | None = None
        """The task waits in `next`: all that it took before has been handed to the connection, in order."""
        self._client_gone = False
        self.has_started = False
        self._backlog_bytes = 0
        self.writer: Writer | None = None
        """Set once the response has begun."""

    def on_output(self, generation: Generation, num_chars: int) -> None:
        """From a generation: it has that much more text, or has ended."""
        if self._client_gone:
            return
        if generation.ended:
            self._has_end = True
        elif not self._streams:
            return
        self._ready[generation] = None
        self._backlog_bytes += 4 * num_chars  # a character's most

    def flush(self) -> None:
        """A step is complete: writes what it gave, or wakes the task."""
        if not self._ready or self._client_gone:
            return
        if self._streams and self._backlog_bytes > limits.MAX_STREAM_BACKLOG_BYTES:
            self.client_left()
            self._cut_off()
        elif self._waiter is not None and not self._waiter.done():
            try:
                if not self._write():
                    self._waiter.set_result(None)
            except Exception as error:  # our bug, and this response's alone
                self._waiter.set_exception(error)

    def _write(self) -> bool:
        if self.writer is None or self._has_end or not self.writer(self._ready):
            return False
        self._ready.clear()
        self._backlog_bytes = 0
        return True

    def client_left(self) -> None:
        """Nobody takes any more: generations are let go, which lead back here."""
        self._client_gone = True
        self._ready.clear()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> list[Generation]:
        """The generations with new text or a new end. Raises ClientGoneError."""
        while not self._ready and not self._client_gone:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        if self._client_gone:
            raise ClientGoneError
        ready = list(self._ready)
        self._ready.clear()
        self._has_end = False
        self._backlog_bytes = 0
        return ready
