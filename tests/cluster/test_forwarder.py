"""The way from Ray's proxy to an engine: a scripted engine on a Unix socket, the ASGI application in front of it."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from albireo.cluster.engine import Engine
from albireo.cluster.forwarder import Forwarder
from albireo.cluster.upstream import UpstreamGoneError, get

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CHUNK = b"data: {}\n\n"


class Client:
    """What an ASGI server does for one request."""

    def __init__(self, path: str, body: bytes = b"", method: str = "POST", **scope: Any) -> None:
        headers = [(b"host", b"h"), (b"content-length", b"%d" % len(body)), (b"connection", b"keep-alive")]
        self.scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": headers, "root_path": "", **scope,
        }  # fmt: skip
        self.sent: list[MutableMapping[str, Any]] = []
        self.is_gone = asyncio.Event()
        self.has_more = asyncio.Event()
        self._pieces = [body[:10], body[10:]] if len(body) > 10 else [body]

    async def receive(self) -> dict[str, Any]:
        if self._pieces:
            return {"type": "http.request", "body": self._pieces.pop(0), "more_body": bool(self._pieces)}
        await self.is_gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.sent.append(message)
        self.has_more.set()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def is_complete(self) -> bool:
        return not self.sent[-1].get("more_body", False)


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head, and the body of a request that says how long it is."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line), 0)
    return head, await reader.readexactly(length)


def serve(tmp_path: Path, handler: Handler, act: Callable[[Forwarder], Awaitable[None]]) -> None:
    """Runs `act` in front of an engine that handles every connection so."""

    async def run() -> None:
        path = str(tmp_path / "http.sock")
        connections = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.append(asyncio.current_task())
            with suppress(ConnectionError):
                await handler(reader, writer)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

        server = await asyncio.start_unix_server(handle, path)
        try:
            async with asyncio.timeout(20):
                await act(Forwarder(path))
                await asyncio.gather(*filter(None, connections))
        finally:
            server.close()

    asyncio.run(run())


def test_a_request_goes_through_as_it_is_without_what_belongs_to_its_connection(tmp_path: Path) -> None:
    seen = []

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(
            b"HTTP/1.1 429 Too Many\r\ncontent-length: 2\r\nretry-after: 2\r\nconnection: close\r\n"
            b"date: x\r\nserver: uvicorn\r\nx-request-id: 7\r\n\r\n{}"
        )

    async def act(forward: Forwarder) -> None:
        client = Client("/v1/chat%20x", b'{"prompt": "a text"}', query_string=b"a=b%20c")
        client.scope["headers"] += [
            (b"authorization", b"Bearer k"),
            (b"expect", b"100-continue"),
            (b"x-request-id", b"7"),
        ]
        await forward(client.scope, client.receive, client.send)
        assert (client.status, client.body, client.is_complete) == (429, b"{}", True)
        # the proxy writes date, server and the id itself
        assert client.headers == {b"content-length": b"2", b"retry-after": b"2"}

    serve(tmp_path, engine, act)
    ((head, body),) = seen
    assert head.startswith(b"POST /v1/chat%20x?a=b%20c HTTP/1.1\r\nhost: h\r\n")
    assert body == b'{"prompt": "a text"}'
    lines = set(head.split(b"\r\n"))
    assert {b"authorization: Bearer k", b"x-request-id: 7", b"connection: close"} <= lines
    assert not any(line.startswith(b"expect") or line == b"connection: keep-alive" for line in lines)


def test_a_route_s_prefix_is_the_proxy_s(tmp_path: Path) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _ = await read_request(reader)
        path = head.split(b" ")[1]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(path), path))

    async def act(forward: Forwarder) -> None:
        client = Client("/llm/v1/models", method="GET", root_path="/llm")
        await forward(client.scope, client.receive, client.send)
        assert client.body == b"/v1/models"

    serve(tmp_path, engine, act)


def test_a_body_of_unknown_length_goes_through_in_chunks(tmp_path: Path) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = await reader.readuntil(b"0\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    async def act(forward: Forwarder) -> None:
        client = Client("/x", b"0123456789abc", headers=[(b"transfer-encoding", b"chunked")])
        await forward(client.scope, client.receive, client.send)
        assert client.body == b"a\r\n0123456789\r\n3\r\nabc\r\n0\r\n\r\n"

    serve(tmp_path, engine, act)


def test_each_event_of_a_stream_goes_out_before_the_next_is_there(tmp_path: Path) -> None:
    has_arrived = asyncio.Semaphore(0)

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(3):
            writer.write(b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
            await has_arrived.acquire()
        writer.write(b"0\r\n\r\n")

    async def act(forward: Forwarder) -> None:
        client = Client("/v1/completions")
        request = asyncio.create_task(forward(client.scope, client.receive, client.send))
        for number in range(3):
            while len(client.sent) < number + 2:
                client.has_more.clear()
                await client.has_more.wait()
            assert client.body == CHUNK * (number + 1)
            has_arrived.release()
        await request
        assert client.is_complete
        assert b"transfer-encoding" not in client.headers

    serve(tmp_path, engine, act)


@pytest.mark.parametrize("is_streaming", [False, True])
def test_a_client_that_goes_takes_its_request_along(tmp_path: Path, is_streaming: bool) -> None:
    has_request, is_aborted = asyncio.Event(), asyncio.Event()

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        if is_streaming:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        has_request.set()
        with suppress(ConnectionError):
            assert not await reader.read()
        is_aborted.set()

    async def act(forward: Forwarder) -> None:
        client = Client("/v1/completions", b"{}")
        request = asyncio.create_task(forward(client.scope, client.receive, client.send))
        await has_request.wait()
        client.is_gone.set()
        await request
        await is_aborted.wait()
        assert len(client.sent) <= 1  # and nobody is there to be told

    serve(tmp_path, engine, act)


def test_a_request_that_ray_cancels_is_aborted(tmp_path: Path) -> None:
    has_request, is_aborted = asyncio.Event(), asyncio.Event()

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        has_request.set()
        with suppress(ConnectionError):
            assert not await reader.read()
        is_aborted.set()

    async def act(forward: Forwarder) -> None:
        client = Client("/v1/completions", b"{}")
        request = asyncio.create_task(forward(client.scope, client.receive, client.send))
        await has_request.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await is_aborted.wait()

    serve(tmp_path, engine, act)


def test_without_an_engine_clients_are_told_to_come_back(tmp_path: Path) -> None:
    async def act(path: str) -> None:
        client = Client(path)
        await Forwarder(str(tmp_path / "nobody"))(client.scope, client.receive, client.send)
        assert (client.status, client.headers[b"retry-after"]) == (503, b"2")
        error = json.loads(client.body)
        if path == "/v1/messages":
            assert (error["type"], error["error"]["type"]) == ("error", "overloaded_error")
        else:
            assert error["error"]["type"] == "service_unavailable"

    asyncio.run(act("/v1/messages"))
    asyncio.run(act("/v1/chat/completions"))


async def dies_in_a_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    writer.write(b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
    await writer.drain()


@pytest.mark.parametrize(("path", "start"), [("/v1/completions", b"data: "), ("/v1/messages", b"event: error\ndata: ")])
def test_an_engine_that_dies_in_a_stream_leaves_an_error_event_as_its_last(
    tmp_path: Path, path: str, start: bytes
) -> None:
    async def act(forward: Forwarder) -> None:
        client = Client(path)
        await forward(client.scope, client.receive, client.send)
        assert client.is_complete
        event = client.body.removeprefix(CHUNK)
        assert event.startswith(start) and event.endswith(b"\n\n")
        assert "takes its place" in json.loads(event.removeprefix(start))["error"]["message"]

    serve(tmp_path, dies_in_a_stream, act)


def test_an_answer_that_is_not_whole_is_not_ended_as_if_it_were(tmp_path: Path) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{")
        await writer.drain()

    async def act(forward: Forwarder) -> None:
        client = Client("/v1/completions")
        with pytest.raises(UpstreamGoneError):
            await forward(client.scope, client.receive, client.send)
        assert not client.is_complete

    serve(tmp_path, engine, act)


def test_a_head_request_has_an_answer_without_a_body(tmp_path: Path) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
        await reader.read()

    async def act(forward: Forwarder) -> None:
        client = Client("/", method="HEAD")
        await forward(client.scope, client.receive, client.send)
        assert (client.status, client.body, client.is_complete) == (200, b"", True)

    serve(tmp_path, engine, act)


def test_a_reader_who_takes_nothing_stops_the_engine_s_writing(tmp_path: Path) -> None:
    piece = b"x" * 65536
    num_written = 0

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_written
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (1000 * len(piece)))
        for _ in range(1000):
            writer.write(piece)
            await writer.drain()
            num_written += 1

    async def act(forward: Forwarder) -> None:
        client = Client("/")
        may_go_on = asyncio.Event()

        async def send(message: MutableMapping[str, Any]) -> None:
            await may_go_on.wait()
            await client.send(message)

        request = asyncio.create_task(forward(client.scope, client.receive, send))
        before = -1
        while num_written == 0 or num_written != before:
            before = num_written
            await asyncio.sleep(0.1)
        assert num_written < 100
        may_go_on.set()
        await request
        assert len(client.body) == 1000 * len(piece)

    serve(tmp_path, engine, act)


def test_lifespan_and_websockets_are_answered() -> None:
    async def act() -> None:
        sent: list[str] = []
        events = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive() -> dict[str, Any]:
            return {"type": next(events)}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message["type"])

        await Forwarder("/x")({"type": "lifespan"}, receive, send)
        await Forwarder("/x")({"type": "websocket"}, receive, send)
        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]

    asyncio.run(act())


def test_a_probe_that_is_not_answered_is_an_engine_that_is_gone(tmp_path: Path) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def act(forward: Forwarder) -> None:
        with pytest.raises(UpstreamGoneError, match="no answer to GET /health"):
            await get(str(tmp_path / "http.sock"), "/health", 0.05)

    serve(tmp_path, engine, act)


def test_an_engine_that_starts_what_has_died_again_is_well_for_a_while(tmp_path: Path) -> None:
    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def act(forward: Forwarder) -> None:
        recovering = Engine((), {}, 0.0)
        recovering.socket_path = str(tmp_path / "http.sock")
        assert await recovering.is_well(), "Ray would replace it after half a minute"
        recovering._was_well_s -= recovering._recovery_s
        assert not await recovering.is_well()

    serve(tmp_path, engine, act)
