"""What happens to requests whose client, engine or server does not do as it should."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import endless_reply, tokens_reply, wait_for
from frontend_server import MODEL, NAME, FrontendServer

from albireo import limits
from albireo.frontend.formats import CompletionFormat
from albireo.frontend.generation import Generation
from albireo.messages import EngineReady, Finish, Rejected


def request_bytes(path: str = "/v1/completions", **fields: Any) -> bytes:
    body = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 200} | fields).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.fixture
def server(tokenizer_path: Path, run_dir: Path) -> Iterator[FrontendServer]:
    with FrontendServer(run_dir, tokenizer_path, endless_reply([74]), step_s=0.005) as server:
        yield server


def events(lines: Iterator[str]) -> list[Any]:
    data = [line.removeprefix("data: ") for line in lines if line]
    assert data[-1] == "[DONE]"
    return [json.loads(each) for each in data[:-1]]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_aborts_all_its_requests(server: FrontendServer, stream: bool) -> None:
    server.coordinator.paused.set()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(request_bytes(prompt=["a", "b", "c"], stream=stream))
        wait_for(lambda: len(server.coordinator.submits) == 3)
        if stream:
            server.coordinator.paused.clear()
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    wait_for(lambda: sorted(server.coordinator.aborted) == [1, 2, 3])
    wait_for(lambda: not server.coordinator.live)


def test_a_finished_request_is_not_aborted_when_its_client_leaves(server: FrontendServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(request_bytes(max_tokens=2))
        assert b"length" in connection.recv(10_000)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(request_bytes())
        wait_for(lambda: len(server.coordinator.submits) == 2)
    wait_for(lambda: bool(server.coordinator.aborted))
    assert server.coordinator.aborted == [2]


def test_a_slow_reader_is_cut_off_and_others_are_not(
    tokenizer_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_STREAM_BACKLOG_BYTES", 200_000)
    # one token of 4,000 characters: a vocabulary may have such, a test needs them for speed
    with (
        FrontendServer(run_dir, long_token_path(tokenizer_path, run_dir), endless_reply([402]), step_s=0.002) as server,
        socket.create_connection(("127.0.0.1", server.port)) as slow,
    ):
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(request_bytes(stream=True, prompt=["x"] * 60, max_tokens=240))
        reader = httpx.post(server.url + "/v1/completions", json={"prompt": "y", "max_tokens": 240}, timeout=30)
        assert reader.json()["usage"]["completion_tokens"] == 240
        wait_for(lambda: len(server.coordinator.aborted) > 0, timeout_s=30)
        received = 0
        while data := read_some(slow):
            received += len(data)
        assert received < 20_000_000
        wait_for(lambda: not server.coordinator.live)


def test_a_client_that_lags_gets_all_of_its_text_in_fewer_pieces(
    tokenizer_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_STREAM_BACKLOG_BYTES", 2**30)
    with (
        FrontendServer(run_dir, long_token_path(tokenizer_path, run_dir), endless_reply([402]), step_s=0.001) as server,
        socket.socket() as lagging,
    ):
        lagging.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        lagging.settimeout(30)
        lagging.connect(("127.0.0.1", server.port))
        lagging.sendall(request_bytes(stream=True, prompt=["x"] * 8, max_tokens=240))
        wait_for(lambda: len(server.coordinator.submits) == 8)
        wait_for(lambda: not server.coordinator.live, timeout_s=30)
        pieces = [b""]
        while b"[DONE]" not in b"".join(pieces[-2:]):
            pieces.append(lagging.recv(1 << 20))
            assert pieces[-1], "the connection was closed"
        answer = b"".join(pieces)
        assert answer.count(b"y" * 4000) == 8 * 240
        assert answer.count(b"data: ") < 8 * 240
        assert not server.coordinator.aborted


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_takes_nothing_of_a_complete_answer_is_cut_off(
    tokenizer_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(limits, "MAX_STREAM_BACKLOG_BYTES", 2**30)
    monkeypatch.setattr(limits, "STALLED_TIMEOUT_S", 1.5)
    with (
        FrontendServer(run_dir, long_token_path(tokenizer_path, run_dir), endless_reply([402])) as server,
        socket.socket() as stalled,
    ):
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.settimeout(30)
        stalled.connect(("127.0.0.1", server.port))
        stalled.sendall(request_bytes(stream=stream, prompt=["x"] * 8, max_tokens=240))
        wait_for(lambda: len(server.coordinator.submits) == 8)
        wait_for(lambda: not server.coordinator.live, timeout_s=30)
        wait_for(lambda: num_connections(server) == 0, timeout_s=30)
        received = 0
        while data := read_some(stalled):
            received += len(data)
        assert received < 500_000


def test_a_client_that_lags_is_not_stalled(
    tokenizer_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STALLED_TIMEOUT_S", 1.5)
    with (
        FrontendServer(run_dir, long_token_path(tokenizer_path, run_dir), endless_reply([402])) as server,
        socket.socket() as lagging,
    ):
        lagging.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        lagging.settimeout(30)
        lagging.connect(("127.0.0.1", server.port))
        lagging.sendall(request_bytes(prompt=["x"] * 2, max_tokens=240))
        pieces = [b""]
        while not pieces[-1].endswith(b"}}}"):
            time.sleep(0.05)  # four seconds in all
            pieces.append(lagging.recv(24_000))
            assert pieces[-1], "the connection was closed"
        assert len(b"".join(pieces)) > 2 * 240 * 4000


def num_connections(server: FrontendServer) -> int:
    """Established ones, as the kernel has them, from the server's side."""
    lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    local = f":{server.port:04X}"
    return sum(fields[1].endswith(local) and fields[3] == "01" for fields in map(str.split, lines))


def test_a_bug_in_the_middle_of_a_stream_ends_that_stream_alone(
    server: FrontendServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chunk = CompletionFormat.chunk

    def broken(self: CompletionFormat, generation: Generation) -> bytes:
        if generation.num_prompt_tokens == 3 and generation.num_tokens >= 5:  # two may come in one piece
            raise RuntimeError("a bug")
        return chunk(self, generation)

    monkeypatch.setattr(CompletionFormat, "chunk", broken)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(request_bytes(prompt=[5, 6, 7], stream=True))
        fine = httpx.post(server.url + "/v1/completions", json={"prompt": [5, 6], "max_tokens": 40, "stream": True})
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert answer.count(b"data: ") <= 4
    assert answer.count(b'"finish_reason":null') == answer.count(b"data: ")
    assert events(iter(fine.text.splitlines()))[-1]["choices"][0]["finish_reason"] == "length"
    wait_for(lambda: server.coordinator.aborted == [1])
    assert any("a bug" in str(record.exc_info) for record in caplog.records)


def read_some(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


def long_token_path(tokenizer_path: Path, run_dir: Path) -> Path:
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_path / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("y" * 4000, normalized=False)])
    path = run_dir / "tokenizer"
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize("stream", [False, True])
def test_a_rejected_request_is_a_400_even_when_it_streams(tokenizer_path: Path, run_dir: Path, stream: bool) -> None:
    reply = Rejected(0, "prompt", "needs more KV blocks than there are")
    with FrontendServer(run_dir, tokenizer_path, lambda submit: reply) as server:
        answer = httpx.post(server.url + "/v1/completions", json={"prompt": "x", "stream": stream})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "prompt"
        assert "KV blocks" in answer.json()["error"]["message"]


def test_a_request_that_the_engine_ends_finishes_with_abort(tokenizer_path: Path, run_dir: Path) -> None:
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74, -1], Finish.ABORT)) as server:
        choice = httpx.post(server.url + "/v1/completions", json={"prompt": "x"}).json()["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("h", "abort")


def test_stop_lets_running_requests_finish_and_takes_no_more(tokenizer_path: Path, run_dir: Path) -> None:
    with FrontendServer(run_dir, tokenizer_path, endless_reply([74]), step_s=0.01, shutdown_timeout_s=10.0) as server:
        with httpx.stream(
            "POST", server.url + "/v1/completions", json={"prompt": "x", "max_tokens": 50, "stream": True}
        ) as running:
            lines = running.iter_lines()
            next(lines)
            server.supervisor.stop(NAME)
            wait_for(lambda: httpx.get(server.url + "/ready").status_code == 503)
            refused = httpx.post(server.url + "/v1/completions", json={"prompt": "x"})
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert "stopping" in refused.json()["error"]["message"]
            assert events(lines)[-1]["choices"][0]["finish_reason"] == "length"
        server.join()


def test_stop_ends_what_does_not_finish_with_an_error_event(server: FrontendServer) -> None:
    whole: list[httpx.Response] = []
    waiter = threading.Thread(
        target=lambda: whole.append(
            httpx.post(server.url + "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
        )
    )
    started = time.monotonic()
    with httpx.stream(
        "POST", server.url + "/v1/completions", json={"prompt": "x", "max_tokens": 250, "stream": True}
    ) as running:
        lines = running.iter_lines()
        next(lines)
        waiter.start()
        wait_for(lambda: len(server.coordinator.submits) == 2)
        server.coordinator.paused.set()
        server.supervisor.stop(NAME)
        last = events(lines)[-1]
    assert "stopping" in last["error"]["message"]
    waiter.join()
    assert whole[0].status_code == 503
    server.join()
    assert time.monotonic() - started < 5
    wait_for(lambda: sorted(server.coordinator.aborted) == [1, 2])


def test_requests_wait_for_the_engine_with_a_503(tokenizer_path: Path, run_dir: Path) -> None:
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74]), ready=False) as server:
        wait_for(lambda: httpx.get(server.url + "/live").status_code == 200)
        early = httpx.post(server.url + "/v1/completions", json={"prompt": "x"})
        assert early.status_code == 503
        assert "starting" in early.json()["error"]["message"]
        assert httpx.get(server.url + "/ready").status_code == 503
        server.supervisor.tell(NAME, EngineReady(1000))
        wait_for(lambda: httpx.get(server.url + "/ready").status_code == 200)
        assert httpx.post(server.url + "/v1/completions", json={"prompt": "x"}).status_code == 200


def test_the_kv_cache_bounds_the_context_where_it_is_smaller(tokenizer_path: Path, run_dir: Path) -> None:
    with FrontendServer(run_dir, tokenizer_path, endless_reply([74]), num_kv_blocks=4) as server:
        url = server.url + "/v1/completions"
        assert httpx.post(url, json={"prompt": [5] * 60, "max_tokens": 5}).json()["error"]["param"] == "max_tokens"
        assert httpx.post(url, json={"prompt": [5] * 64}).json()["error"]["param"] == "prompt"
        assert httpx.post(url, json={"prompt": [5] * 60, "max_tokens": 4}).status_code == 200


def test_pipelined_requests_are_answered_in_order(server: FrontendServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(request_bytes(max_tokens=1) + request_bytes(max_tokens=2) + request_bytes(max_tokens=3))
        answer = b""
        while answer.count(b'"completion_tokens":') < 3:
            answer += connection.recv(65536)
    assert [part[:1] for part in answer.split(b'"completion_tokens":')[1:]] == [b"1", b"2", b"3"]
