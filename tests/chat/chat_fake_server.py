"""A chat server of the tests' own: answers as told, and keeps what it was asked."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeChatServer(ThreadingHTTPServer):
    """`events` are streamed in answer to each question, `[DONE]` among them; or `status` with `error`."""

    def __init__(self, unix_path: str | None = None) -> None:
        self._unix_path = unix_path
        self.address_family = socket.AF_INET if unix_path is None else socket.AF_UNIX
        super().__init__(("127.0.0.1", 0), _Handler)
        self.events: list[dict[str, Any] | str] = [*map(said, ["Hel", "lo"]), finished(), usage(), "[DONE]"]
        self.status = 200
        self.error: Any = None
        self.models: list[str] = ["first", "second"]
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    def server_bind(self) -> None:
        if self._unix_path is None:
            super().server_bind()
        else:
            self.socket.bind(self._unix_path)

    @property
    def url(self) -> str:
        if self._unix_path is not None:
            return f"http+unix:{self._unix_path}"
        return f"http://127.0.0.1:{self.server_address[1]}"


def said(text: str, **fields: object) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text} | fields, "finish_reason": None}]}


def finished(reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def usage() -> dict[str, Any]:
    counts = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    return {"choices": [], "usage": counts}


class _Handler(BaseHTTPRequestHandler):
    server: FakeChatServer

    def do_GET(self) -> None:
        self.server.keys.append(self.headers["Authorization"])
        self._respond(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.status != 200:
            self._respond(self.server.status, self.server.error)
            return
        self.send_response(200)
        self.end_headers()
        for event in self.server.events:
            payload = event if isinstance(event, str) else json.dumps(event)
            self.wfile.write(f"data: {payload}\n\n".encode())

    def _respond(self, status: int, body: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@contextmanager
def running(unix_path: str | None = None) -> Iterator[FakeChatServer]:
    with FakeChatServer(unix_path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
