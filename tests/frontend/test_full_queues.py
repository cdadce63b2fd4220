"""Queues in a frontend have an end, and who comes behind it is told so."""

import json
import select
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fakes import endless_reply, wait_for
from frontend_server import FrontendServer

from albireo import limits
from albireo.config import SchedulerConfig
from albireo.frontend.tokenizer import Tokenizer


def post_bytes(path: str, fields: dict[str, Any]) -> bytes:
    body = json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def connect(server: FrontendServer, number: int, opened: ExitStack) -> list[socket.socket]:
    """So many clients, which end with `opened`."""
    address = ("127.0.0.1", server.port)
    return [opened.enter_context(socket.create_connection(address, timeout=30)) for _ in range(number)]


def test_chats_that_come_at_once_are_not_all_let_in_while_none_is_the_engine_s_yet(
    tokenizer_path: Path, run_dir: Path
) -> None:
    chat = post_bytes("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
    with FrontendServer(run_dir, tokenizer_path, endless_reply([74]), max_num_waiting=2) as server:
        server.coordinator.paused.set()
        with ExitStack() as opened:
            clients = connect(server, 20, opened)
            for client in clients:
                client.sendall(chat)
            answers: list[bytes] = []
            while answered := select.select(clients, [], [], 1.0)[0]:
                answers += [client.recv(10_000) for client in answered]
                clients = [client for client in clients if client not in answered]
            assert [answer[:13] for answer in answers] == 18 * [b"HTTP/1.1 429 "]
            assert len(server.coordinator.submits) == 2
        server.coordinator.paused.clear()


def completion(priority: int, **fields: Any) -> bytes:
    return post_bytes("/v1/completions", {"prompt": "x", "max_tokens": 3, "priority": priority, **fields})


def answer_of(client: socket.socket) -> bytes:
    """Head and body, which is JSON."""
    answer = b""
    while not answer.endswith(b"}"):
        piece = client.recv(10_000)
        assert piece, answer
        answer += piece
    return answer


def test_under_priorities_a_full_queue_makes_room_for_who_would_start_sooner(
    tokenizer_path: Path, run_dir: Path
) -> None:
    by_priority = SchedulerConfig(max_model_len=256, policy="priority")
    with (
        FrontendServer(
            run_dir, tokenizer_path, endless_reply([74]), scheduler=by_priority, max_num_waiting=2
        ) as server,
        ExitStack() as opened,
    ):
        server.coordinator.paused.set()
        clients = connect(server, 7, opened)
        older, newer, equal, first, second, third, pair = clients
        submits = server.coordinator.submits
        for number, client in enumerate((older, newer), 1):
            client.sendall(completion(5))
            wait_for(lambda: len(submits) == number)  # noqa: B023
        equal.sendall(completion(5))
        assert answer_of(equal).startswith(b"HTTP/1.1 429 ")
        for client, displaced in ((first, newer), (second, older)):
            client.sendall(completion(0))
            answer = answer_of(displaced)
            assert answer.startswith(b"HTTP/1.1 429 ") and b"retry-after" in answer and b"higher priority" in answer
        third.sendall(completion(0))
        assert answer_of(third).startswith(b"HTTP/1.1 429 ")
        pair.sendall(completion(-1, n=2))
        assert answer_of(second).startswith(b"HTTP/1.1 429 ") and answer_of(first).startswith(b"HTTP/1.1 429 ")
        wait_for(lambda: len(submits) == 6)
        assert [submit.priority for submit in submits] == [5, 5, 0, 0, -1, -1]
        server.coordinator.paused.clear()
        assert answer_of(pair).startswith(b"HTTP/1.1 200 ")


def test_without_priorities_a_full_queue_makes_room_for_nobody(tokenizer_path: Path, run_dir: Path) -> None:
    with (
        FrontendServer(run_dir, tokenizer_path, endless_reply([74]), max_num_waiting=1) as server,
        ExitStack() as opened,
    ):
        server.coordinator.paused.set()
        waiting, refused = connect(server, 2, opened)
        waiting.sendall(completion(5))
        wait_for(lambda: len(server.coordinator.submits) == 1)
        refused.sendall(completion(0))
        assert answer_of(refused).startswith(b"HTTP/1.1 429 ")
        server.coordinator.paused.clear()
        assert answer_of(waiting).startswith(b"HTTP/1.1 200 ")


def test_texts_to_tokenise_do_not_queue_up_without_bound(
    tokenizer_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()

    def encode_prompt(self: Tokenizer, text: str, field: str, adds_special: bool = True) -> list[int]:
        may_end.wait(60)
        return [5]

    monkeypatch.setattr(Tokenizer, "encode_prompt", encode_prompt)
    text = post_bytes("/tokenize", {"prompt": "x" * 2 * limits.MAX_INLINE_ENCODE_CHARS})
    with (
        FrontendServer(run_dir, tokenizer_path, endless_reply([74]), max_num_waiting=3) as server,
        ExitStack() as opened,
    ):
        clients = connect(server, 4, opened)
        for client in clients:
            client.sendall(text)
        (refused,) = select.select(clients, [], [], 5)[0]
        assert refused.recv(10_000).startswith(b"HTTP/1.1 429 ")
        may_end.set()
        clients.remove(refused)
        assert [client.recv(10_000)[:13] for client in clients] == 3 * [b"HTTP/1.1 200 "]


def test_large_texts_that_wait_for_a_thread_have_so_many_bytes_together(
    tokenizer_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_LARGE_BODIES_BYTES", 300_000)
    may_end = threading.Event()
    encoded: list[int] = []

    def encode_prompt(self: Tokenizer, text: str, field: str, adds_special: bool = True) -> list[int]:
        encoded.append(len(text))
        may_end.wait(60)
        return [5]

    monkeypatch.setattr(Tokenizer, "encode_prompt", encode_prompt)
    small, large = (post_bytes("/tokenize", {"prompt": "x" * num_chars}) for num_chars in (10_000, 200_000))
    with FrontendServer(run_dir, tokenizer_path, endless_reply([74])) as server, ExitStack() as opened:
        clients = connect(server, 3, opened)
        for number, (client, request) in enumerate(zip(clients, (large, large, small), strict=True), 1):
            client.sendall(request)
            wait_for(lambda: len(encoded) == number)  # noqa: B023
        (refused,) = connect(server, 1, opened)
        refused.sendall(large)
        assert refused.recv(10_000).startswith(b"HTTP/1.1 429 ")
        may_end.set()
        assert [client.recv(10_000)[:13] for client in clients] == 3 * [b"HTTP/1.1 200 "]
        refused.sendall(large)  # there is room again
        assert refused.recv(10_000).startswith(b"HTTP/1.1 200 ")
