"""A lean HTTP/1.1 client for one server: keep-alive connections that feed each response to a sink as it arrives."""

import asyncio
import ssl
import time
from typing import Protocol, cast
from urllib.parse import SplitResult

import httptools

from albireo.server_url import split_url


class ConnectionClosedError(OSError):
    """The server closed the connection before the response was complete."""


class ResponseSink(Protocol):
    """What receives a response: `status` is set first, then `feed` is called with each piece of the body."""

    status: int

    def feed(self, data: bytes, now_ns: int) -> None: ...


class KeptBody:
    """A sink that keeps a small response, up to `max_bytes` of it."""

    def __init__(self, max_bytes: int) -> None:
        self.status = 0
        self.content = b""
        self._max_bytes = max_bytes

    def feed(self, data: bytes, now_ns: int) -> None:
        self.content += data[: self._max_bytes - len(self.content)]


class HttpConnection(asyncio.Protocol):
    """One connection, one request at a time. Its owner is the pool; all of it runs on the event loop's thread."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._sink: ResponseSink | None = None
        self._response: asyncio.Future[None] | None = None
        self._now_ns = 0
        self._framed = False
        self.answered = False
        """The current response has begun, so that its request must not be sent again."""
        self.reusable = True

    async def request(self, request: bytes, sink: ResponseSink) -> None:
        """Sends a whole request and returns once its response has been fed to `sink`; OSError when that fails."""
        if self._transport is None:
            raise ConnectionClosedError("not connected")
        self._sink, self.answered = sink, False
        self._response = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._response
        except BaseException:
            # cancelled: half a response may be on the wire, and after a whole one nobody has the connection any more
            self.close()
            raise

    def close(self) -> None:
        self.reusable, self._sink = False, None
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._now_ns = time.perf_counter_ns()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionClosedError(f"not an HTTP response: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sink is not None and self._ends_at_close():
            self._finish()
        self._fail(ConnectionClosedError("the server closed the connection" + (f": {exc}" if exc else "")))

    # httptools

    def on_message_begin(self) -> None:
        self.answered = True
        self._framed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._framed = self._framed or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        if self._sink is not None:
            self._sink.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._sink is not None:
            self._sink.feed(body, self._now_ns)

    def on_message_complete(self) -> None:
        self.reusable = self._parser.should_keep_alive()
        self._finish()

    def _ends_at_close(self) -> bool:
        """True for a response without a length, whose end is the end of the connection (RFC 9112, section 6.3)."""
        return self.answered and not self._framed and self._sink is not None and self._sink.status != 0

    def _finish(self) -> None:
        self._sink = None
        if self._response is not None and not self._response.done():
            self._response.set_result(None)

    def _fail(self, error: OSError) -> None:
        self.reusable, self._sink = False, None
        if self._response is not None and not self._response.done():
            self._response.set_exception(error)
        if self._transport is not None:
            self._transport.abort()


class ConnectionPool:
    """Connections to one server, as many as there are requests at once; idle ones are used again, last in first out."""

    def __init__(self, base_url: str, insecure: bool = False) -> None:
        """`base_url`: as of `split_url`. `insecure`: the server's certificate is not verified."""
        self.url: SplitResult
        self.url, self._unix_path = split_url(base_url)
        self.opened = 0
        self._idle: list[HttpConnection] = []
        self._address: str | None = None
        self._ssl = _ssl_context(insecure) if self.url.scheme == "https" else None

    async def resolve(self) -> str:
        """Looks the host up once, so that no request waits for a resolver thread; OSError when it is unknown."""
        if self._address is None:
            found = await asyncio.get_running_loop().getaddrinfo(self.url.hostname, self._port())
            self._address = str(found[0][4][0])
        return self._address

    async def request(self, request: bytes, sink: ResponseSink) -> None:
        """One request and its response; OSError when the transport fails.

        A server may close an idle connection while a request is on its way: that request, unanswered on a connection
        that had served others, is sent once more on a fresh one.
        """
        while self._idle:
            connection = self._idle.pop()
            if not connection.reusable:
                continue
            try:
                await self._request_on(connection, request, sink)
                return
            except ConnectionClosedError:
                if connection.answered:
                    raise
                break
        await self._request_on(await self._connect(), request, sink)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _request_on(self, connection: HttpConnection, request: bytes, sink: ResponseSink) -> None:
        await connection.request(request, sink)
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()

    async def _connect(self) -> HttpConnection:
        name = self.url.hostname if self._ssl else None
        loop = asyncio.get_running_loop()
        if self._unix_path is not None:
            _, connection = await loop.create_unix_connection(
                HttpConnection, self._unix_path, ssl=self._ssl, server_hostname=name
            )
        else:
            _, connection = await loop.create_connection(
                HttpConnection, await self.resolve(), self._port(), ssl=self._ssl, server_hostname=name
            )
        self.opened += 1
        return connection

    def _port(self) -> int:
        return self.url.port or (443 if self.url.scheme == "https" else 80)


def _ssl_context(insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
