"""A completions server of the tests' own: streams tokens as told, in its own thread, and counts what it saw."""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class FakeServer:
    """What it does with each request, and what came. Fields may be changed between requests."""

    root: str = ""
    """Tokenizer folder that /v1/models names."""
    port: int = 0
    ready: bool = True
    fail_every: int = 0
    """Every n-th completion is answered with HTTP 500."""
    send_usage: bool = True
    tokens_per_chunk: int = 1
    hang_up_after: int | None = None
    """Chunks after which the connection is closed in the middle of the stream."""
    close_after_response: bool = False
    """Says keep-alive and closes all the same, as a server does whose idle timeout has run out."""
    metrics: Callable[[], str] | None = None
    """Text of /metrics; None is a server that has none."""
    bodies: list[dict[str, object]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    connections: int = 0
    active: int = 0
    peak_active: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                lengths = [line[15:] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
                length = int(lengths[0]) if lengths else 0
                body = await reader.readexactly(length)
                self.headers.append(head)
                if await self._answer(head.split()[1], body, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """True when the connection shall be closed."""
        if path == "/health" or not self.ready:
            _respond(writer, 200 if self.ready else 503, {})
            return False
        if path == "/v1/models":
            _respond(writer, 200, {"object": "list", "data": [{"id": "fake", "root": self.root}]})
            return False
        if path == "/metrics" and self.metrics is not None:
            content = self.metrics().encode()
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
            return False
        if path not in ("/v1/completions", "/v1/chat/completions"):
            _respond(writer, 404, {"error": {"message": "no such route"}})
            return False
        request = json.loads(body)
        self.bodies.append(request)
        if self.fail_every and len(self.bodies) % self.fail_every == 0:
            _respond(writer, 500, {"error": {"message": "out of luck"}})
            return False
        self.active += 1
        self.peak_active = max(self.peak_active, self.active)
        hung_up = await self._stream(request, writer)
        self.active -= 1
        return hung_up or self.close_after_response

    async def _stream(self, request: dict[str, object], writer: asyncio.StreamWriter) -> bool:
        is_chat = "messages" in request
        wanted, sent = int(str(request["max_completion_tokens" if is_chat else "max_tokens"])), 0
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(-(-wanted // self.tokens_per_chunk)):
            if number == self.hang_up_after:
                return True
            step = min(self.tokens_per_chunk, wanted - sent)
            sent += step
            piece = {"delta": {"content": " a" * step}} if is_chat else {"text": " a" * step}
            choice = {"index": 0, "finish_reason": "length" if sent == wanted else None} | piece
            _event(writer, {"id": "c", "choices": [choice]})
            await writer.drain()
            await asyncio.sleep(0.002)
        if self.send_usage:
            prompt = str(request["messages"]) if is_chat else request["prompt"]
            prompt_tokens = len(prompt) if isinstance(prompt, list) else len(str(prompt).split())
            _event(writer, {"id": "c", "choices": [], "usage": _usage(prompt_tokens, wanted)})
        _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return False


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, object]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def _event(writer: asyncio.StreamWriter, event: dict[str, object]) -> None:
    _chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def _respond(writer: asyncio.StreamWriter, status: int, body: dict[str, object]) -> None:
    content = json.dumps(body).encode()
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)


@contextmanager
def running(server: FakeServer) -> Iterator[FakeServer]:
    """Runs it on a loop of its own thread, since the benchmark under test makes its own loop in the test's."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    ready = threading.Event()

    async def main() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.port = listening.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        listening.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    assert ready.wait(60)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()


async def main(root: str, port: int, pid_file: Path) -> None:
    """As a process of its own, for tools that launch servers."""
    listening = await asyncio.start_server(FakeServer(root=root).serve, "127.0.0.1", port)
    pid_file.write_text(str(os.getpid()))
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
