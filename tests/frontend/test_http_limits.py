"""Connections that send what no client sends."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import endless_reply, tokens_reply, wait_for
from frontend_server import FrontendServer

from albireo import limits
from albireo.frontend.http_protocol import BoundedHttpProtocol

GET = b"GET /live HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def server(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontendServer]:
    with FrontendServer(tmp_path_factory.mktemp("run"), tokenizer_path, tokens_reply([74])) as server:
        yield server


@pytest.fixture
def endless(tokenizer_path: Path, run_dir: Path) -> Iterator[FrontendServer]:
    with FrontendServer(run_dir, tokenizer_path, endless_reply([74]), step_s=0.005) as server:
        yield server


def answer(server: FrontendServer, *pieces: bytes) -> bytes:
    """What comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
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


def post(max_tokens: int, **fields: object) -> bytes:
    body = json.dumps({"prompt": "x", "max_tokens": max_tokens} | fields).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def test_an_offer_of_another_protocol_is_passed_over_and_the_request_answered(server: FrontendServer) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    head, body = post(3).split(b"\r\n\r\n")
    with_offer = b"\r\n".join([head, offer])
    response = answer(server, with_offer.replace(b", close", b"") + b"\r\n" + body + with_offer + b"\r\n", body)
    assert response.count(b"HTTP/1.1 200 ") == response.count(b'"completion_tokens":2') == 2
    assert b"HTTP/1.1 101 " not in response


def test_offers_of_another_protocol_in_line_end_like_other_requests(server: FrontendServer) -> None:
    offer = GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    response = answer(server, offer * 2000)
    assert response.count(b"HTTP/1.1 200 ") == response.count(b"HTTP/1.1 ") == 1 + limits.MAX_PIPELINED_REQUESTS


def test_garbage_behind_a_request_does_not_take_its_answer(server: FrontendServer) -> None:
    response = answer(server, post(3, stream=True) + post(2) + b"GARBAGE\r\n\r\n")
    assert response.count(b"HTTP/1.1 200 ") == 2
    assert b"[DONE]" in response
    assert b'"completion_tokens":2' in response
    assert b" 400 " not in response


def test_a_broken_body_behind_a_request_does_not_take_its_answer(server: FrontendServer) -> None:
    head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    response = answer(server, post(3) + head + b"zz\r\n{}\r\n")
    assert response.count(b"HTTP/1.1 ") == 1
    assert b'"completion_tokens":2' in response


def test_a_client_that_leaves_with_more_requests_in_line_aborts_the_first(endless: FrontendServer) -> None:
    endless.coordinator.paused.set()
    with socket.create_connection(("127.0.0.1", endless.port)) as connection:
        connection.sendall(post(200, stream=True) + GET + b"\r\n" + GET + b"\r\n")
        wait_for(lambda: len(endless.coordinator.submits) == 1)
    wait_for(lambda: endless.coordinator.aborted == [1])
    endless.coordinator.paused.clear()


def test_of_requests_in_line_the_first_are_answered_and_no_more_are_kept(server: FrontendServer) -> None:
    response = answer(server, post(3, stream=True) + (GET + b"\r\n") * 5000)
    assert response.count(b"HTTP/1.1 200 ") == 1 + limits.MAX_PIPELINED_REQUESTS
    assert response.count(b"HTTP/1.1 ") == 1 + limits.MAX_PIPELINED_REQUESTS
    assert b"[DONE]" in response


def test_a_head_that_comes_too_slowly_is_a_408(server: FrontendServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_TIMEOUT_S", 0.1)
    response = answer(server, GET)
    assert response.startswith(b"HTTP/1.1 408 ")
    assert "0.1 seconds" in error(response)


def test_a_body_that_comes_too_slowly_is_a_408(server: FrontendServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUEST_TIMEOUT_S", 0.1)
    assert answer(server, post(3)[:-1]).startswith(b"HTTP/1.1 408 ")


def test_half_a_request_behind_a_stream_does_not_end_it(
    endless: FrontendServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEAD_TIMEOUT_S", 0.1)
    response = answer(endless, post(240, stream=True, prompt=[5, 6]) + GET)
    assert b"[DONE]" in response  # after a second and more
    assert b"HTTP/1.1 408 " in response


def test_a_connection_that_says_nothing_is_closed(server: FrontendServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedHttpProtocol, "check", with_keep_alive(BoundedHttpProtocol.check, 0.1))
    assert answer(server) == b""


def test_a_body_that_ends_after_its_answer_leaves_no_connection_behind(
    server: FrontendServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedHttpProtocol, "check", with_keep_alive(BoundedHttpProtocol.check, 0.1))
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
        assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
        connection.sendall(b"}")
        assert connection.recv(65536) == b""


def with_keep_alive(check: Callable[[BoundedHttpProtocol, float], None], seconds: float) -> Any:
    """`check` on connections that are kept so long."""

    def check_with(self: BoundedHttpProtocol, now_s: float) -> None:
        self.timeout_keep_alive = seconds  # type: ignore[assignment]
        check(self, now_s)

    return check_with


def test_a_request_that_was_answered_before_its_end_is_not_answered_again(
    server: FrontendServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REQUEST_TIMEOUT_S", 0.1)
    response = answer(server, b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
    assert response.count(b"HTTP/1.1 ") == 1
    assert response.startswith(b"HTTP/1.1 404 ")
