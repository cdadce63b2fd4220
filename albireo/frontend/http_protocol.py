"""uvicorn's HTTP protocol with what it lacks: bounds on headers, on the time that a client takes and on the number of
connections, a way to drop a connection, and a way to write the next piece of a response at once.

llhttp keeps a header that never ends in memory without a bound (vLLM: CVE-2025-48956).
"""

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

import httptools
import msgspec
from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from albireo import limits
from albireo.errors import (
    HeadersTooLargeError,
    RequestError,
    RequestTimeoutError,
    TooManyConnectionsError,
    UnavailableError,
    error_body,
)
from albireo.frontend.connection_table import ConnectionTable

_DROP = "albireo.drop_connection"
_PIECES = "albireo.piece_writer"
_RESET = struct.pack("ii", 1, 0)
"""A struct linger: on, for no time."""


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


class TooManyPipelinedError(Exception):
    """More than limits.MAX_PIPELINED_REQUESTS."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _unaccounted_bytes = 0
    """Received since the last complete header block or piece of body: a header, or a chunk's frame, in the making."""
    _running: RequestResponseCycle | None = None
    """The request that is being answered; `cycle` is the newest one, which may wait behind it."""
    _is_refused = False
    """What comes from the client is no HTTP any more: nothing of it is read."""
    _reading_since_s: float | None = None
    """Loop time of the first byte of a request of which more is to come."""
    _has_head = False
    """Of that request."""
    _data = b""
    """What is being parsed."""
    _has_place = True
    """False where there are too many connections: told so when it asks for something, and closed if it does not."""
    _unsent_bytes = 0
    _stalled_since_s = 0.0
    """Loop time at which `check` last saw that some of them had gone."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._has_place = self._table.make_room()
        self._table.set_idle(self)
        if self.client is not None:  # TCP, not a Unix socket
            opened = transport.get_extra_info("socket")
            # the kernel's own share of both bounds: what it holds for a client that does not read is megabytes, and
            # stays for minutes after we have closed; a client whose machine is gone it gives up after a quarter hour
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, limits.MAX_KERNEL_BACKLOG_BYTES)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * limits.STALLED_TIMEOUT_S))

    @property
    def _table(self) -> ConnectionTable:
        assert isinstance(self.server_state, ConnectionTable)
        return self.server_state

    def check(self, now_s: float) -> None:
        """About once a second: cuts off a client that is too slow to send its request, or takes nothing of the answer.
        `now_s` is the loop's time."""
        self._check_stalled(now_s)
        if not self._has_place:
            self.transport.close()
        if self.transport.is_closing():
            return
        if self._reading_since_s is not None:
            limit_s = limits.REQUEST_TIMEOUT_S if self._has_head else limits.HEAD_TIMEOUT_S
            if self.flow.read_paused or self._answers_another:
                self._reading_since_s = now_s  # it is we who do not read on, or do not mind
            elif now_s - self._reading_since_s > limit_s:
                self._refuse(RequestTimeoutError(f"the request has not come within {limit_s:g} seconds"))
        elif not self._answers and self.timeout_keep_alive_task is None:
            # a new connection, or an answer that was there before the request's end: uvicorn starts no timer
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _check_stalled(self, now_s: float) -> None:
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes == 0 or unsent_bytes < self._unsent_bytes or not self._unsent_bytes:
            self._stalled_since_s = now_s
        elif now_s - self._stalled_since_s > limits.STALLED_TIMEOUT_S:
            self._drop()
        self._unsent_bytes = unsent_bytes

    @property
    def _answers(self) -> bool:
        return self._running is not None and not self._running.response_complete

    @property
    def _answers_another(self) -> bool:
        """A request that has come whole is being answered: what else comes belongs to the next one."""
        return self._running is not None and not self._running.response_complete and not self._running.more_body

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading_since_s = self.loop.time()
        extensions: dict[str, Any] = {
            _DROP: self._drop,
            _PIECES: PieceWriter(self.transport, self.flow),
        }
        self.scope["extensions"] = extensions

    def on_headers_complete(self) -> None:
        """Raises TooManyPipelinedError, which ends parsing: uvicorn takes it for bad HTTP, and `_refuse` has the
        requests before it answered."""
        if len(self.pipeline) >= limits.MAX_PIPELINED_REQUESTS:
            raise TooManyPipelinedError
        self._unaccounted_bytes = 0
        self._has_head = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unaccounted_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._reading_since_s = None
        self._has_head = False
        super().on_message_complete()
        self._note_idle()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_idle()

    def _note_idle(self) -> None:
        if self._reading_since_s is None and not self._answers and not self.transport.is_closing():
            self._table.set_idle(self)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._table.set_busy(self)
        if not self._has_place:
            self._refuse(TooManyConnectionsError())
            return
        if self._reading_since_s is None:
            self._reading_since_s = self.loop.time()
        self._unaccounted_bytes += len(data)
        self._data = data
        super().data_received(data)
        self._data = b""
        if self._unaccounted_bytes > limits.MAX_HEADER_BYTES and not self.transport.is_closing():
            self._refuse(HeadersTooLargeError(f"the headers must have at most {limits.MAX_HEADER_BYTES} bytes"))

    def _should_upgrade(self) -> bool:
        """To no other protocol; but llhttp stops behind the head of a request that offers one, and takes its body for
        that protocol's. Java's HttpClient offers h2c with whatever it asks first."""
        return self._get_upgrade() is not None

    def handle_websocket_upgrade(self) -> None:
        """uvicorn calls it for any protocol, where llhttp has stopped: reads the request again without the offer."""
        stopped = sys.exc_info()[1]
        assert isinstance(stopped, httptools.HttpParserUpgrade)
        head = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                head.append(b"connection: " + b", ".join(each for each in options if each.lower() != b"upgrade"))
            elif name != b"upgrade":
                head.append(name + b": " + value)
        rest = self._data[stopped.args[0] :]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"\r\n".join(head) + b"\r\n\r\n" + rest)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            _tell_gone(self._running)  # uvicorn tells the newest request
        self._table.set_busy(self)
        self._unset_keepalive_if_required()  # uvicorn's timer keeps a connection that was reset
        # the scope leads back here: cut, so that a request goes at once and not when the garbage collector comes by
        self.scope = self.cycle = self._running = None  # type: ignore[assignment]

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        """For bytes that are no HTTP: the same, in OpenAI's error shape."""
        self._refuse(RequestError(msg))

    def _refuse(self, error: RequestError) -> None:
        """Reads no more of this client. Requests that have come whole before are answered first, and then it has
        heard enough: an answer is not cut short, and no error is written into the middle of it."""
        self._is_refused = True
        if self._answers_another:
            self._close_after_answers()
            return
        running = self._running
        if running is not None and running.more_body:  # it is what cannot be read to its end
            _tell_gone(running)
            if running.response_complete:
                self.transport.close()
                return
            if running.response_started:
                self._drop()
                return
        body = msgspec.json.encode(error_body(error))
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
        if isinstance(error, UnavailableError):
            head += b"retry-after: %d\r\n" % limits.RETRY_AFTER_S
        head += b"\r\n"
        self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()

    def _close_after_answers(self) -> None:
        if self.pipeline and self.pipeline[0][0].more_body:  # the newest: its body is what was wrong
            self.pipeline.popleft()
        last = self.pipeline[0][0] if self.pipeline else self._running
        assert last is not None
        last.keep_alive = False

    def _drop(self) -> None:
        """Closes at once with a reset: else the kernel would go on offering the client what it holds for it."""
        if not self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()


def _tell_gone(cycle: RequestResponseCycle) -> None:
    """Its application hears that the client has left, and what it writes goes nowhere."""
    cycle.disconnected = True
    cycle.message_event.set()
