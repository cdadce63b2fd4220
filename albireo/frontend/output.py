"""What one HTTP response waits for: the output of its generations, or its client leaving."""

import asyncio
from collections.abc import Callable

from albireo import limits
from albireo.frontend.generation import Generation


class ClientGoneError(Exception):
    """The client closed the connection, or was cut off. There is nobody to answer."""


class Output:
    """Collects the generations that have something to say until the response's task takes them.

    While the task waits for a slow client, text piles up in the generations and goes out as one write later; beyond
    MAX_STREAM_BACKLOG_BYTES the client is cut off. Lives on the event loop.
    """

    def __init__(self, streams: bool, cut_off: Callable[[], None]) -> None:
        """`streams`: whether text is wanted as it comes, or only the end. `cut_off` drops the connection."""
        self._streams = streams
        self._cut_off = cut_off
        self._ready: dict[Generation, None] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._client_gone = False
        self._backlog_bytes = 0

    def on_output(self, generation: Generation, num_chars: int) -> None:
        """From a generation: it has that much more text, or has ended."""
        if not self._streams and not generation.ended:
            return
        self._ready[generation] = None
        self._backlog_bytes += 4 * num_chars  # a character's most
        if self._streams and self._backlog_bytes > limits.MAX_STREAM_BACKLOG_BYTES:
            self.client_left()
            self._cut_off()
        self._wake()

    def client_left(self) -> None:
        self._client_gone = True
        self._wake()

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
        self._backlog_bytes = 0
        return ready

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
