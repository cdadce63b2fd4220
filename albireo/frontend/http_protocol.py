"""uvicorn's HTTP protocol with three things it lacks: a bound on headers, a way to drop a connection, and a way to
write the next piece of a response at once.

llhttp keeps a header that never ends in memory without a bound (vLLM: CVE-2025-48956).
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from albireo import limits
from albireo.errors import HeadersTooLargeError, RequestError, error_body

_DROP = "albireo.drop_connection"
_PIECES = "albireo.piece_writer"


def connection_dropper(scope: Scope) -> Callable[[], None]:
    """Closes the request's connection at once, throwing away what is still to be sent. Does nothing under a server
    that is not ours."""
    drop: Callable[[], None] = scope.get("extensions", {}).get(_DROP, lambda: None)
    return drop


class PieceWriter:
    """Writes pieces of a chunked response between its start and its end, in place of `http.response.body` messages:
    these need the response's task, and are coroutines through every layer of the application."""

    __slots__ = ("_flow", "_transport")

    def __init__(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        self._transport = transport
        self._flow = flow

    @property
    def takes_more(self) -> bool:
        """False while the client lags, and once it is gone."""
        return not self._flow.write_paused and not self._transport.is_closing()

    def write(self, body: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))


def piece_writer(scope: Scope) -> PieceWriter | None:
    """Of the request's connection; None under a server that is not ours."""
    writer: PieceWriter | None = scope.get("extensions", {}).get(_PIECES)
    return writer


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _unaccounted_bytes = 0
    """Received since the last complete header block or piece of body: a header, or a chunk's frame, in the making."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: dict[str, Any] = {
            _DROP: self.transport.abort,
            _PIECES: PieceWriter(self.transport, self.flow),
        }
        self.scope["extensions"] = extensions

    def on_headers_complete(self) -> None:
        self._unaccounted_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unaccounted_bytes = 0
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        self._unaccounted_bytes += len(data)
        super().data_received(data)
        if self._unaccounted_bytes > limits.MAX_HEADER_BYTES and not self.transport.is_closing():
            self._refuse(HeadersTooLargeError(f"the headers must have at most {limits.MAX_HEADER_BYTES} bytes"))

    def send_400_response(self, msg: str) -> None:
        """For bytes that are no HTTP: the same, in OpenAI's error shape."""
        self._refuse(RequestError(msg))

    def _refuse(self, error: RequestError) -> None:
        body = msgspec.json.encode(error_body(error))
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()
