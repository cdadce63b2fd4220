"""Bodies that are too large, or too many at once, are refused while they are read."""

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from fakes import tokens_reply, wait_for
from frontend_server import FrontendServer

from albireo import limits

CHUNKED = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@pytest.fixture(scope="module")
def server(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontendServer]:
    with FrontendServer(tmp_path_factory.mktemp("run"), tokenizer_path, tokens_reply([74], eos=2)) as server:
        yield server


def test_a_huge_body_is_a_413_by_its_declared_length_alone(server: FrontendServer) -> None:
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(f"{head}Content-Length: {limits.MAX_BODY_BYTES + 1}\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert str(limits.MAX_BODY_BYTES).encode() in answer


def test_a_huge_body_is_a_413_while_it_is_read(server: FrontendServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(CHUNKED)
        for _ in range(limits.MAX_BODY_BYTES // 65536):
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        # a byte too many, and none that the server would leave unread: closing would be a reset then
        connection.sendall(b"1\r\nx\r\n")
        answer = connection.makefile("rb").read()  # though it has not ended
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_large_bodies_in_the_making_have_room_for_so_many_bytes_together(
    server: FrontendServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_LARGE_BODIES_BYTES", 300_000)
    large = CHUNKED + b"30000\r\n" + b"x" * 0x30000 + b"\r\n"
    with ExitStack() as opened:
        address = ("127.0.0.1", server.port)
        clients = [opened.enter_context(socket.create_connection(address, timeout=30)) for _ in range(3)]
        for client in clients:
            client.sendall(large)
        (refused,) = select.select(clients, [], [], 5)[0]
        answer = refused.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 429 ") and b"retry-after: " in answer
        assert httpx.post(server.url + "/v1/completions", json={"prompt": "x", "max_tokens": 2}).status_code == 200
    wait_for(lambda: _is_read(server, large))


def _is_read(server: FrontendServer, large: bytes) -> bool:
    """Whether it is read to its end, and then found to be no JSON."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(large + b"0\r\n\r\n")
        return connection.recv(10_000).startswith(b"HTTP/1.1 400 ")
