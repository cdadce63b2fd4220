"""Connections that send what no client sends."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import tokens_reply
from frontend_server import FrontendServer

from albireo import limits

GET = b"GET /live HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def server(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontendServer]:
    with FrontendServer(tmp_path_factory.mktemp("run"), tokenizer_path, tokens_reply([74])) as server:
        yield server


def answer(server: FrontendServer, *pieces: bytes) -> bytes:
    """What comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        data = b""
        try:
            while piece := connection.recv(65536):
                data += piece
        except ConnectionResetError:
            pass
        return data


def error(response: bytes) -> str:
    return str(json.loads(response.split(b"\r\n\r\n", 1)[1])["error"]["message"])


def test_a_header_that_never_ends_is_cut_off(server: FrontendServer) -> None:
    response = answer(server, GET, b"X-Long: ", *[b"x" * 16384] * 40)
    assert response.startswith(b"HTTP/1.1 431 ")
    assert str(limits.MAX_HEADER_BYTES) in error(response)


def test_headers_without_end_are_cut_off(server: FrontendServer) -> None:
    assert answer(server, GET, *[b"X-Many: value\r\n" * 1000] * 40).startswith(b"HTTP/1.1 431 ")


def test_trailers_without_end_are_cut_off(server: FrontendServer) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    body = b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    response = answer(server, head + body, *[b"X-Trailer: value\r\n" * 1000] * 40)
    assert b"HTTP/1.1 431 " in response or b"HTTP/1.1 400 " in response


def test_headers_of_ordinary_size_pass(server: FrontendServer) -> None:
    assert answer(server, GET, b"X-Cookie: " + b"x" * 30_000 + b"\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 200 "
    )


def test_many_requests_on_one_connection_are_not_added_up(server: FrontendServer) -> None:
    header = b"X-Cookie: " + b"x" * 30_000 + b"\r\n"
    response = answer(server, *[GET + header + b"\r\n"] * 5, GET + b"Connection: close\r\n\r\n")
    assert response.count(b"HTTP/1.1 200 ") == 6


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00", b"GARBAGE\r\n\r\n", b"GET /live HTTP/9.9\r\n\r\n"])
def test_what_is_no_http_is_a_400_in_json(server: FrontendServer, data: bytes) -> None:
    response = answer(server, data)
    assert response.startswith(b"HTTP/1.1 400 ")
    assert "HTTP" in error(response)
