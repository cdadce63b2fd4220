"""The end of a frontend: who is in the middle of something."""

import json
import socket
import time
from pathlib import Path

import httpx
from fakes import endless_reply, tokens_reply
from frontend_server import NAME, FrontendServer

from albireo.messages import Reload


def test_a_request_whose_body_is_still_coming_is_told_to_come_again(run_dir: Path, tokenizer_path: Path) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74], eos=2)) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head)
            time.sleep(0.2)
            server.supervisor.stop(NAME)
            answer = b""
            while piece := client.recv(65536):
                answer += piece
        server.join()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in answer
    assert b"the server is stopping" in answer


def test_a_client_that_reads_slowly_gets_all_of_a_finished_stream(run_dir: Path, tokenizer_path: Path) -> None:
    """Its last tokens are written when the engine has long had nothing to do for it."""
    body = {"prompt": "x", "max_tokens": 200, "stream": True, "logprobs": 20}
    with FrontendServer(run_dir, tokenizer_path, endless_reply([74]), shutdown_timeout_s=20.0) as server:
        with httpx.stream("POST", server.url + "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.coordinator.wait_for(lambda: not server.coordinator.live)
            server.supervisor.stop(NAME)
            time.sleep(2.5)  # longer than uvicorn's patience
            rest = list(lines)
        server.join()
    assert "data: [DONE]" in rest


def test_a_client_that_reads_slowly_gets_all_of_an_answer_in_one_piece(run_dir: Path, tokenizer_path: Path) -> None:
    """It is written at once, and then nobody but the connection has it."""
    body = json.dumps({"prompt": "x", "n": 16, "max_tokens": 200, "logprobs": 20}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with FrontendServer(run_dir, tokenizer_path, endless_reply([74]), shutdown_timeout_s=20.0) as server:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            client.sendall(head % len(body) + body)
            answer = client.recv(1000)
            server.supervisor.stop(NAME)
            time.sleep(2.5)  # longer than uvicorn's patience
            while piece := client.recv(65536):
                answer += piece
        server.join()
    assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["choices"]) == 16


def test_keys_that_are_reloaded_hold_from_the_next_request_on(run_dir: Path, tokenizer_path: Path) -> None:
    def status(key: str) -> int:
        return httpx.get(server.url + "/v1/models", headers={"x-api-key": key}).status_code

    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74], eos=2)) as server:
        assert status("any") == 200
        assert "securitySchemes" not in httpx.get(server.url + "/openapi.json").json()["components"]
        server.supervisor.tell(NAME, Reload("info", ("one", "two")))
        server.coordinator.wait_for(lambda: status("any") == 401)
        assert status("two") == 200
        document = httpx.get(server.url + "/openapi.json", headers={"x-api-key": "one"}).json()
        assert "securitySchemes" in document["components"]
        server.supervisor.tell(NAME, Reload("info"))
        server.supervisor.tell(NAME, Reload("info", ("three",)))
        server.coordinator.wait_for(lambda: status("three") == 200)
        assert status("two") == 401
