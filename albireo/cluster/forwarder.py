"""ASGI: requests go to an engine over its Unix socket and its answers come back, byte by byte as they are written."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import msgspec

from albireo import limits
from albireo.cluster.upstream import Exchange, Head, UpstreamGoneError
from albireo.errors import UnavailableError, anthropic_error_body, error_body, is_anthropic

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SET_BY_PROXY = frozenset({b"date", b"server", b"x-request-id"})
"""Ray's proxy writes these itself; its X-Request-Id is the client's, or one that the engine was sent."""
ENGINE_GONE = UnavailableError("this replica's engine has ended; another one takes its place")


class Forwarder:
    """The ASGI application in front of one engine. A client that goes takes its request along.

    Where the engine ends in the middle of an event stream, an error event in the path's own words is the stream's last;
    another answer is cut off, so that the client sees that it is not whole.
    """

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            await self._forward(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        answer, upload = _Answer(send), None
        try:
            async with Exchange(self._socket_path) as exchange:
                await exchange.send_head(scope["method"], _target(scope), scope["headers"])
                upload = asyncio.create_task(_upload(exchange, receive))
                try:
                    async for part in exchange.answer():
                        await answer.take(part)
                finally:
                    is_client_gone = upload.done()
                    upload.cancel()
            await answer.end()
        except UpstreamGoneError as error:
            if upload is not None and is_client_gone:
                return
            log.warning("%s %r: the engine is gone: %s", scope["method"], path, error)
            await answer.break_off(path, error)


class _Answer:
    """How much of an answer the client has."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_started = False
        self._is_event_stream = False
        self._last = b"\n\n"

    async def take(self, part: Head | bytes) -> None:
        if isinstance(part, Head):
            self._is_started = True
            headers = [each for each in part.headers if each[0] not in SET_BY_PROXY]
            types = [value for name, value in headers if name == b"content-type"]
            self._is_event_stream = any(value.startswith(b"text/event-stream") for value in types)
            await self._send({"type": "http.response.start", "status": part.status, "headers": headers})
        else:
            self._last = part[-2:]
            await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def break_off(self, path: str, reason: UpstreamGoneError) -> None:
        """Raises the reason where only a connection that closes can tell of it."""
        body = msgspec.json.encode(anthropic_error_body(ENGINE_GONE) if is_anthropic(path) else error_body(ENGINE_GONE))
        if not self._is_started:
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"retry-after", b"%d" % limits.RETRY_AFTER_S),
            ]
            await self._send({"type": "http.response.start", "status": ENGINE_GONE.status, "headers": headers})
            await self._send({"type": "http.response.body", "body": body})
        elif self._is_event_stream and self._last == b"\n\n":
            event = b"event: error\n" if is_anthropic(path) else b""
            await self._send({"type": "http.response.body", "body": b"%sdata: %s\n\n" % (event, body)})
        else:
            raise reason


async def _upload(exchange: Exchange, receive: Receive) -> None:
    """The request's body; then waits for the client to go, which ends the exchange."""
    try:
        while (message := await receive())["type"] == "http.request":
            await exchange.send_body(message.get("body", b""), is_last=not message.get("more_body", False))
    finally:
        exchange.abort()


async def _live(receive: Receive, send: Send) -> None:
    """Nothing is to be done at the start and at the end."""
    with suppress(asyncio.CancelledError):
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})


def _target(scope: Scope) -> bytes:
    """Path and query as the client wrote them, without what the proxy was told to take off."""
    root = scope.get("root_path", "")
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    target: bytes = bytes(raw).removeprefix(quote(root).encode()) or b"/"
    return target + b"?" + scope["query_string"] if scope.get("query_string") else target
