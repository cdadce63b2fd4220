"""SIGTERM in the middle of streams: nobody is cut off, nobody new is let in."""

import json
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import pytest
from server import Server, eventually

pytestmark = pytest.mark.e2e
STEP_MS = 20
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "stream": True}
STREAMS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x", "stream": True, "stream_options": {"include_usage": True}},
    "/v1/chat/completions": CHAT | {"stream_options": {"include_usage": True}},
    "/v1/messages": CHAT | {"model": "albireo-demo"},
    "/v1/responses": {"model": "albireo-demo", "input": "x", "stream": True},
}
"""A body for each API that streams."""


def null_server(*arguments: str) -> Server:
    return Server("--device", "null", "--null-step-ms", str(STEP_MS), *arguments)


def connect(server: Server) -> HTTPConnection:
    address = urlsplit(server.url)
    return HTTPConnection(address.hostname or "", address.port, timeout=30)


def ask(connection: HTTPConnection, path: str, body: dict[str, Any] | None = None) -> tuple[HTTPResponse, str]:
    """The whole response. Raises what http.client does where it is not whole."""
    method, data = ("GET", None) if body is None else ("POST", json.dumps(body))
    connection.request(method, path, data, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response, response.read().decode()


def ask_anew(server: Server, path: str, body: dict[str, Any] | None = None) -> tuple[HTTPResponse, str]:
    """On a connection of its own."""
    with closing(connect(server)) as connection:
        return ask(connection, path, body)


def stream_body(path: str, max_tokens: int) -> dict[str, Any]:
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    return STREAMS[path] | {limit: max_tokens}


def start_streams(
    server: Server, pool: ThreadPoolExecutor, max_tokens: int
) -> dict[str, Future[tuple[HTTPResponse, str]]]:
    """One of each API, by path; returns when all are under way."""
    streams = {}
    for path in STREAMS:
        streams[path] = pool.submit(ask_anew, server, path, stream_body(path, max_tokens))
    assert eventually(lambda: server.metric("albireo:num_requests_running") == len(STREAMS))
    assert eventually(lambda: server.metric("albireo:time_to_first_token_seconds_count") == len(STREAMS))
    return streams


def test_streams_finish_whole_and_who_comes_is_told_to_come_again() -> None:
    with null_server("--shutdown-timeout", "30") as server, ThreadPoolExecutor(8) as pool, ExitStack() as stack:
        kept = stack.enter_context(closing(connect(server)))
        assert ask(kept, "/ready")[0].status == 200
        streams = start_streams(server, pool, 100)
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: ask_anew(server, "/ready")[0].status == 503)
        for connection in (kept, stack.enter_context(closing(connect(server)))):
            assert ask(connection, "/health")[0].status == 200
            assert ask(connection, "/live")[0].status == 200
            for path in STREAMS if connection is not kept else ["/v1/completions"]:
                response, body = ask(connection, path, stream_body(path, 5))
                assert response.status == 503
                assert int(response.headers["Retry-After"]) > 0
                assert response.headers["Connection"] == "close"
                assert "the server is stopping" in body
        ends = {path: stream.result()[1].split("\n\n") for path, stream in streams.items()}
        for path in ("/v1/completions", "/v1/chat/completions"):
            *_, usage, done, _ = ends[path]
            assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == 100
            assert done == "data: [DONE]"
        assert ends["/v1/messages"][-2].startswith("event: message_stop")
        assert ends["/v1/responses"][-2].startswith("event: response.incomplete")
        assert server.wait() == 0


def test_at_the_timeout_streams_end_with_an_error_in_their_api_s_words() -> None:
    with null_server("--shutdown-timeout", "1") as server, ThreadPoolExecutor(8) as pool:
        streams = start_streams(server, pool, 1000)
        begin_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        texts = {path: stream.result()[1] for path, stream in streams.items()}
        assert time.monotonic() - begin_s > 0.9
        assert server.wait() == 0
        assert time.monotonic() - begin_s < 8
    for path in ("/v1/completions", "/v1/chat/completions"):
        error = next(line for line in texts[path].splitlines() if line.startswith('data: {"error"'))
        assert json.loads(error[6:])["error"]["type"] == "service_unavailable"
    assert "event: error\n" in texts["/v1/messages"]
    assert "overloaded_error" in texts["/v1/messages"]
    assert "event: response.failed\n" in texts["/v1/responses"]
    assert any("4 requests had no time to finish" in line for line in server.lines)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(second: signal.Signals) -> None:
    with null_server("--shutdown-timeout", "60") as server, ThreadPoolExecutor(8) as pool:
        streams = start_streams(server, pool, 1000)
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: ask_anew(server, "/ready")[0].status == 503)
        begin_s = time.monotonic()
        server.process.send_signal(second)
        assert server.wait() == 0
        assert time.monotonic() - begin_s < 3
        for stream in streams.values():
            assert isinstance(stream.exception(), HTTPException)


def test_requests_that_are_being_prepared_are_served_or_told_to_come_again() -> None:
    prompt = "word " * 600  # prepared on a thread
    with null_server("--shutdown-timeout", "10") as server, ThreadPoolExecutor(64) as pool:
        body = {"prompt": prompt, "max_tokens": 2}
        answers = [pool.submit(ask_anew, server, "/v1/completions", body) for _ in range(64)]
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        statuses = set()
        for answer in answers:
            if answer.exception() is None:
                statuses.add(answer.result()[0].status)
            else:  # it had not been let in when the last was answered
                assert isinstance(answer.exception(), OSError | HTTPException)
        assert statuses <= {200, 503}
        assert server.wait() == 0
