"""What a request took is free when it has been answered: nothing waits for the garbage collector, which counts objects
and not bytes. A refused body of 8 MB would stay until some hundred other requests have been refused too."""

import gc
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_scene import Letters
from fakes import endless_reply, tokens_reply, wait_for
from frontend_server import FrontendServer

from albireo.frontend.generation import Generation
from albireo.frontend.http_protocol import BoundedHttpProtocol
from albireo.frontend.output import Output
from albireo.messages import Finish, Rejected, Submit

NUM_REQUESTS = 20


def get(path: str) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path.encode()


def post(path: str, body: bytes) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d"
    return head % (path.encode(), len(body)) + b"\r\n\r\n" + body


def completion(**fields: object) -> bytes:
    return post("/v1/completions", json.dumps({"prompt": "x", "max_tokens": 2} | fields).encode())


def chat(number: int, **fields: object) -> bytes:
    messages = [{"role": "user", "content": "x"}] * number
    return post("/v1/chat/completions", json.dumps({"messages": messages, "max_tokens": 2} | fields).encode())


REQUESTS = {
    "200": completion(),
    "200 stream": completion(stream=True),
    "200 chat": chat(1),
    "200 on a thread": post("/tokenize", json.dumps({"prompt": "x" * 3000}).encode()),
    "400 type": completion(max_tokens="many"),
    "400 value": completion(prompt=[1] * 300),
    "400 JSON": post("/v1/completions", b'{"prompt": '),
    "400 UTF-8": post("/v1/completions", b'{"prompt": "\xff"}'),
    "400 on a thread": completion(prompt="x" * 10_000),
    "400 chat": chat(1000),
    "400 body": post("/tokenize", b"")[:-21] + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n",
    "404": get("/nowhere"),
    "404 model": completion(model="none"),
    "405": get("/v1/completions"),
    "413": post("/v1/completions", b"")[:-5] + b"99999999\r\n\r\n",
    "415": completion().replace(b"application/json", b"text/plain"),
    "no HTTP": b"GARBAGE\r\n\r\n",
}


def play(server: FrontendServer, request: bytes) -> bytes:
    """What comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request)
        data = b""
        while piece := connection.recv(65536):
            data += piece
        return data


def num_connections() -> int:
    """Connections in memory, closed ones included."""
    return sum(type(each) is BoundedHttpProtocol for each in gc.get_objects())


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Has NUM_REQUESTS played inside with the collector off, and looks at what is left of them."""
    gc.collect()
    gc.disable()
    num_before = num_connections()  # other tests' servers may be there
    try:
        yield
        wait_for(lambda: num_connections() <= num_before)
        assert gc.collect() < NUM_REQUESTS
    finally:
        gc.enable()


@pytest.fixture(scope="module")
def server(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontendServer]:
    with FrontendServer(tmp_path_factory.mktemp("run"), tokenizer_path, tokens_reply([74])) as server:
        yield server


def expect_nothing_kept(server: FrontendServer, request: bytes) -> None:
    play(server, request)  # caches fill with the first of its kind
    with nothing_kept():
        for _ in range(NUM_REQUESTS):
            assert play(server, request).startswith(b"HTTP/1.1 ")


@pytest.mark.parametrize("name", REQUESTS)
def test_an_answered_request_leaves_nothing_to_the_collector(server: FrontendServer, name: str) -> None:
    expect_nothing_kept(server, REQUESTS[name])


def rejects(submit: Submit) -> Rejected:
    return Rejected(submit.request_id, "prompt", "the prompt is too long")


@pytest.mark.parametrize("stream", [False, True])
def test_nor_does_one_that_the_engine_refused(tokenizer_path: Path, run_dir: Path, stream: bool) -> None:
    with FrontendServer(run_dir, tokenizer_path, rejects) as server:
        assert b" 400 " in play(server, completion(stream=stream))
        expect_nothing_kept(server, completion(stream=stream))


def test_nor_does_a_client_that_leaves_in_the_middle_of_a_stream(tokenizer_path: Path, run_dir: Path) -> None:
    def leave(server: FrontendServer) -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(completion(stream=True, max_tokens=200))
            connection.recv(100)

    with FrontendServer(run_dir, tokenizer_path, endless_reply([74]), step_s=0.005) as server:
        leave(server)
        with nothing_kept():
            for _ in range(NUM_REQUESTS):
                leave(server)


def test_nor_does_an_idle_connection_that_is_reset(server: FrontendServer) -> None:
    with nothing_kept():
        for _ in range(NUM_REQUESTS):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("feeds", [(1, 0), (0, 1)])
def test_nor_does_a_response_whose_client_left_before_it_took_all(feeds: tuple[int, int]) -> None:
    before, after = feeds

    def leave() -> None:
        output = Output(True, lambda: None)
        generation = Generation(0, 1, Letters(), None, output)
        for _ in range(before):
            generation.feed(0, Finish.NONE)
        output.client_left()
        for _ in range(after):
            generation.feed(0, Finish.NONE)

    with nothing_kept():
        for _ in range(NUM_REQUESTS):
            leave()
