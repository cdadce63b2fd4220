"""One HTTP/1.1 exchange with an engine over its Unix socket."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import httptools
from msgspec import Struct

Headers = Sequence[tuple[bytes, bytes]]

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers of a connection, not of a message (RFC 9110, 7.6.1)."""
_READ_BYTES: Final = 64 * 1024


class UpstreamGoneError(Exception):
    """The engine takes no connection, or has closed one before its answer was complete."""


class Head(Struct, frozen=True):
    """Of an answer, without the headers of the connection."""

    status: int
    headers: list[tuple[bytes, bytes]]


class Exchange:
    """`async with Exchange(path) as exchange:` is a connection for one request. Raises UpstreamGoneError."""

    def __init__(self, path: str) -> None:
        """`path`: of the socket."""
        self._path = path

    async def __aenter__(self) -> Self:
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(self._path)
        except OSError as error:
            raise UpstreamGoneError(f"cannot connect: {error.strerror or error}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.abort()

    def abort(self) -> None:
        """Closes the connection: of a request that is under way the engine sees that its client is gone."""
        self._writer.transport.abort()

    async def send_head(self, method: str, target: bytes, headers: Headers) -> None:
        """`target`: path and query as they stand in a request line."""
        kept = [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP]
        names = {name.lower() for name, _ in headers}
        self._is_chunked = b"transfer-encoding" in names and b"content-length" not in names
        kept.append((b"transfer-encoding", b"chunked") if self._is_chunked else (b"connection", b"close"))
        lines = [b"%s %s HTTP/1.1" % (method.encode(), target), *(b"%s: %s" % each for each in kept), b"", b""]
        self._has_answer_body = method != "HEAD"
        await self._write(b"\r\n".join(lines))

    async def send_body(self, data: bytes, is_last: bool) -> None:
        """Returns when the engine has room for more. What it does not want, since it has answered, is dropped."""
        if self._is_chunked:
            data = b"%x\r\n%s\r\n" % (len(data), data) if data else b""
            if is_last:
                data += b"0\r\n\r\n"
        if data:
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError:
            pass  # the answer, or its absence, is told by `answer`

    async def answer(self) -> AsyncIterator[Head | bytes]:
        """The head, then the body in the pieces in which it comes. Raises UpstreamGoneError when it has no end."""
        message = _Message(self._has_answer_body)
        make_parser: Any = httptools.HttpResponseParser
        parser = make_parser(message)
        message.status_of = parser.get_status_code
        while not message.is_complete:
            try:
                data = await self._reader.read(_READ_BYTES)
            except OSError as error:
                raise UpstreamGoneError(f"connection lost: {error.strerror or error}") from error
            if not data:
                raise UpstreamGoneError("connection closed before the answer's end")
            try:
                parser.feed_data(data)
            except httptools.HttpParserError as error:
                raise UpstreamGoneError(f"no HTTP: {error}") from error
            if message.head is not None:
                yield message.head
                message.head = None
            if message.pieces:
                yield b"".join(message.pieces)
                message.pieces.clear()


class _Message:
    """What httptools has found in an answer so far."""

    def __init__(self, has_body: bool) -> None:
        self.status_of: Callable[[], int] = int
        self.head: Head | None = None
        self.pieces: list[bytes] = []
        self.is_complete = False
        self._has_body = has_body
        self._headers: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() not in HOP_BY_HOP:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.head = Head(self.status_of(), self._headers)
        self.is_complete = not self._has_body

    def on_body(self, piece: bytes) -> None:
        if self._has_body:
            self.pieces.append(piece)

    def on_message_complete(self) -> None:
        self.is_complete = True


async def get(path: str, target: str, timeout_s: float, headers: Headers = ()) -> tuple[int, bytes]:
    """Status and body. Raises UpstreamGoneError, also after the timeout."""
    try:
        async with asyncio.timeout(timeout_s), Exchange(path) as exchange:
            await exchange.send_head("GET", target.encode(), [(b"host", b"engine"), *headers])
            status, body = 0, b""
            async for part in exchange.answer():
                if isinstance(part, Head):
                    status = part.status
                else:
                    body += part
            return status, body
    except TimeoutError:
        raise UpstreamGoneError(f"no answer to GET {target} in {timeout_s:g} s") from None
