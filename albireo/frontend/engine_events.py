"""`GET /engine/events`: the engine as it works, as server-sent events, for the page at `/` and for who else likes it.

One ticker serves all watchers, and there is none while nobody watches. An event is made once and written to each; who
reads too slowly gets the newest one, and misses those between.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from starlette.types import Receive, Scope, Send

from albireo import limits
from albireo.errors import StoppingError, TooManyRequestsError
from albireo.frontend.engine_snapshot import Snapshots, description, encode_event
from albireo.frontend.service import Service

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 0.2
"""Between two events. The page draws what they bring in slow motion: more of them would not make it smoother."""

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-accel-buffering", b"no"),
]


class Watcher:
    """One open response: what it is to write next."""

    def __init__(self, first: bytes) -> None:
        self._first = first
        self._newest = b""
        self._has_ended = False
        self._wake = asyncio.Event()
        self._wake.set()

    def offer(self, event: bytes) -> None:
        """To be written next, in place of one that has not been."""
        self._newest = event
        self._wake.set()

    def end(self) -> None:
        """There is nothing more to write."""
        self._has_ended = True
        self._wake.set()

    async def next(self) -> bytes | None:
        """What is to be written; None at the end."""
        await self._wake.wait()
        if self._has_ended:
            return None
        self._wake.clear()
        body = self._first + self._newest
        self._first = self._newest = b""
        return body


class EngineFeed:
    """The watchers and their ticker. Lives on the event loop."""

    def __init__(self, snapshots: Snapshots, model: str, is_stopping: Callable[[], bool]) -> None:
        self._snapshots = snapshots
        self._first = encode_event("description", description(model, INTERVAL_S, snapshots.processes))
        self._is_stopping = is_stopping
        self._watchers: set[Watcher] = set()
        self._ticker: asyncio.Task[None] | None = None

    def join(self) -> Watcher:
        """Raises StoppingError at the server's end, TooManyRequestsError when all places are taken."""
        if self._is_stopping():
            raise StoppingError
        if len(self._watchers) >= limits.MAX_ENGINE_WATCHERS:
            raise TooManyRequestsError(f"{limits.MAX_ENGINE_WATCHERS} clients watch already; close a page")
        watcher = Watcher(self._first)
        self._watchers.add(watcher)
        if self._ticker is None:
            self._snapshots.forget()
            self._ticker = asyncio.create_task(self._tick())
        return watcher

    def leave(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)
        if not self._watchers and self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    async def _tick(self) -> None:
        try:
            while not self._is_stopping():
                event = encode_event("engine", self._snapshots.event())
                for watcher in self._watchers:
                    watcher.offer(event)
                await asyncio.sleep(INTERVAL_S)
        except Exception:  # our bug: nobody is left waiting for it
            logger.exception("the engine's events have ended")
        for watcher in self._watchers:
            watcher.end()
        self._ticker = None


class EngineEvents:
    """ASGI endpoint: events until the client leaves or the server stops."""

    def __init__(self, service: Service) -> None:
        flight_fds = [fd for segments in service.config.replicas for fd in segments.flight.values()]
        snapshots = Snapshots(service.stats, flight_fds, service.clock_ns)
        self._feed = EngineFeed(snapshots, service.model_name, lambda: service.stopping)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": _HEADERS}
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return
        watcher = self._feed.join()
        leaving = asyncio.create_task(_until_gone(receive))
        leaving.add_done_callback(lambda _: watcher.end())
        try:
            await send(start)
            while (body := await watcher.next()) is not None:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            leaving.cancel()
            self._feed.leave(watcher)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
