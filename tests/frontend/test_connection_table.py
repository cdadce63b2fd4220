"""Too many connections: idle ones make room, and what runs is left alone."""

import json
import resource
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes import endless_reply, tokens_reply
from frontend_server import FrontendServer

from albireo import limits
from albireo.frontend import server as server_module
from albireo.frontend.connection_table import most_connections

GET = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def room_for_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "most_connections", lambda: 3)


def connect(server: FrontendServer, opened: ExitStack) -> socket.socket:
    return opened.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))


def ask(connection: socket.socket) -> bytes:
    connection.sendall(GET)
    return connection.recv(65536)


def ask_for_stream(connection: socket.socket) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 200, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    connection.sendall(head % len(body) + body)


def read_stream(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        piece = connection.recv(65536)
        assert piece, "the stream was cut off"
        data += piece
    return data


@pytest.mark.usefixtures("room_for_three")
def test_a_new_connection_takes_the_place_of_the_one_that_was_idle_longest(tokenizer_path: Path, run_dir: Path) -> None:
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74])) as server, ExitStack() as opened:
        first, second, third = (connect(server, opened) for _ in range(3))
        for connection in (second, third, first):
            assert ask(connection).startswith(b"HTTP/1.1 200 ")
        assert ask(connect(server, opened)).startswith(b"HTTP/1.1 200 ")
        assert second.recv(10) == b""
        assert ask(third).startswith(b"HTTP/1.1 200 ")
        assert ask(first).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("room_for_three")
def test_streams_go_on_however_many_come_and_there_is_room_again_when_these_have_left(
    tokenizer_path: Path, run_dir: Path
) -> None:
    with (
        FrontendServer(run_dir, tokenizer_path, endless_reply([74]), step_s=0.005) as server,
        ExitStack() as opened,
    ):
        streams = [connect(server, opened) for _ in range(2)]
        for connection in streams:
            ask_for_stream(connection)
        server.coordinator.wait_for(lambda: len(server.coordinator.submits) == 2)
        with ExitStack() as briefly:
            for _ in range(30):
                assert ask(connect(server, briefly)).startswith(b"HTTP/1.1 200 ")
        assert all(b"[DONE]" in read_stream(connection) for connection in streams)
        assert ask(streams[0]).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("room_for_three")
def test_where_each_has_a_request_a_new_one_is_a_503(tokenizer_path: Path, run_dir: Path) -> None:
    with (
        FrontendServer(run_dir, tokenizer_path, endless_reply([74]), step_s=0.005) as server,
        ExitStack() as opened,
    ):
        server.coordinator.paused.set()
        streams = [connect(server, opened) for _ in range(3)]
        for connection in streams:
            ask_for_stream(connection)
        server.coordinator.wait_for(lambda: len(server.coordinator.submits) == 3)
        refusal = ask(connect(server, opened))
        assert refusal.startswith(b"HTTP/1.1 503 ")
        assert f"\r\nretry-after: {limits.RETRY_AFTER_S}\r\n".encode() in refusal
        assert "none is idle" in json.loads(refusal.split(b"\r\n\r\n")[1])["error"]["message"]
        silent = connect(server, opened)
        assert silent.recv(10) == b""  # by the check, about once a second
        server.coordinator.paused.clear()
        assert all(b"[DONE]" in read_stream(connection) for connection in streams)


@pytest.mark.parametrize(("allowed", "least", "most"), [
    (1024, 1024 - limits.SPARE_FILES - 900, 1024 - limits.SPARE_FILES - 1),
    (10, 1, 1),
    (resource.RLIM_INFINITY, 100_000, 2**20),
])  # fmt: skip
def test_there_are_fewer_connections_than_files(
    monkeypatch: pytest.MonkeyPatch, allowed: int, least: int, most: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (allowed, allowed))
    assert least <= most_connections() <= most
