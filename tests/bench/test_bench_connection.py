import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest
from bench_fake_server import FakeServer
from hypothesis import given
from hypothesis import strategies as st

from albireo.bench.connection import ConnectionClosedError, ConnectionPool, HttpConnection
from albireo.bench.event_stream import EventStream
from albireo.bench.http_requests import http_request

GET = b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def abort(self) -> None:
        self.aborted = True


class Collected:
    def __init__(self) -> None:
        self.status = 0
        self.body = b""

    def feed(self, data: bytes, now_ns: int) -> None:
        self.body += data


@contextlib.asynccontextmanager
async def listening(handler: Handler, unix_path: str | None = None) -> AsyncIterator[ConnectionPool]:
    handling = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handling.add(asyncio.current_task())
        await handler(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    if unix_path is not None:
        server = await asyncio.start_unix_server(handle, unix_path)
        pool = ConnectionPool(f"http+unix:{unix_path}")
    else:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        pool = ConnectionPool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield pool
    finally:
        pool.close()
        server.close()
        await asyncio.gather(*(task for task in handling if task is not None))


def chunked(pieces: list[bytes]) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


def test_a_connection_is_closed_when_its_request_is_cancelled_in_the_moment_of_the_answer() -> None:
    async def receive() -> bool:
        connection, wire = HttpConnection(), Wire()
        connection.connection_made(wire)
        response = asyncio.ensure_future(connection.request(GET, Collected()))
        await asyncio.sleep(0)
        connection.data_received(chunked([b"all of it"]))
        response.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await response
        return wire.aborted

    assert asyncio.run(receive())


@given(pieces=st.lists(st.binary(max_size=30), max_size=6), cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_a_chunked_response_is_the_same_wherever_the_wire_splits_it(pieces: list[bytes], cuts: list[int]) -> None:
    async def receive() -> Collected:
        connection, sink = HttpConnection(), Collected()
        connection.connection_made(Wire())
        response = asyncio.ensure_future(connection.request(GET, sink))
        await asyncio.sleep(0)
        wire = chunked(pieces)
        edges = [0, *sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]
        for begin, end in pairwise(edges):
            if begin < end:
                connection.data_received(wire[begin:end])
        await response
        assert connection.reusable
        return sink

    received = asyncio.run(receive())
    assert received.status == 200
    assert received.body == b"".join(pieces)


def test_a_connection_is_used_again_and_parallel_requests_get_their_own() -> None:
    server = FakeServer()

    async def run() -> None:
        async with listening(server.serve) as pool:
            for _ in range(3):
                await pool.request(GET, Collected())
            assert (pool.opened, server.connections) == (1, 1)
            await asyncio.gather(*(pool.request(GET, Collected()) for _ in range(3)))
            assert (pool.opened, server.connections) == (3, 3)

    asyncio.run(run())


def test_a_server_on_a_unix_socket_is_reached_as_it_calls_itself(tmp_path: Path) -> None:
    server = FakeServer()

    async def run() -> int:
        async with listening(server.serve, str(tmp_path / "api.sock")) as pool:
            sink = Collected()
            await pool.request(http_request("GET", pool.url.path + "/v1/models", pool.url.netloc, {}), sink)
            return sink.status

    assert asyncio.run(run()) == 200
    assert "Host: localhost\r\n" in server.headers[0]


def test_a_request_on_a_connection_that_went_stale_is_sent_again_on_a_fresh_one() -> None:
    requests = []

    async def answer_one_then_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(chunked([b"hello"]))
        # The second request of the connection is read and never answered.
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async def run() -> None:
        async with listening(answer_one_then_close) as pool:
            for _ in range(2):
                sink = Collected()
                await pool.request(GET, sink)
                assert sink.body == b"hello"
            assert pool.opened == 2

    asyncio.run(run())
    assert len(requests) == 2


def test_a_response_cut_short_is_an_error_and_is_not_asked_for_again() -> None:
    asked = []

    async def cut_short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(chunked([b"hello", b"world"])[:-20])
        writer.close()

    async def run() -> None:
        async with listening(cut_short) as pool:
            with pytest.raises(ConnectionClosedError):
                await pool.request(GET, Collected())

    asyncio.run(run())
    assert len(asked) == 1


def test_a_response_without_a_length_ends_with_its_connection() -> None:
    async def until_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")
        writer.close()

    async def run() -> None:
        async with listening(until_close) as pool:
            sink = Collected()
            await pool.request(GET, sink)
            assert sink.body == b"all of it"
            await pool.request(GET, Collected())
            assert pool.opened == 2

    asyncio.run(run())


def test_what_is_not_http_is_an_error() -> None:
    async def run() -> None:
        connection, wire = HttpConnection(), Wire()
        connection.connection_made(wire)
        response = asyncio.ensure_future(connection.request(GET, Collected()))
        await asyncio.sleep(0)
        connection.data_received(b"SSH-2.0-OpenSSH\r\n")
        with pytest.raises(ConnectionClosedError, match="not an HTTP response"):
            await response
        assert wire.aborted

    asyncio.run(run())


def test_a_cancelled_request_closes_its_connection() -> None:
    async def run() -> None:
        connection, wire = HttpConnection(), Wire()
        connection.connection_made(wire)
        response = asyncio.ensure_future(connection.request(GET, EventStream()))
        await asyncio.sleep(0)
        response.cancel()
        with pytest.raises(asyncio.CancelledError):
            await response
        assert wire.aborted
        assert not connection.reusable

    asyncio.run(run())
