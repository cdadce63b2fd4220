"""HTTP clients that keep a number of completions running on a server of this machine."""

import asyncio
from collections.abc import Callable

import msgspec

from albireo.bench.connection import ConnectionPool
from albireo.bench.http_requests import http_request

SERVED_NAME = "null"
"""What the server calls its model."""


class HttpFailedError(Exception):
    """A completion was refused or broke off."""


class _Discard:
    """Looks at nothing but the status: the frontend is measured, and the client shares its cores."""

    def __init__(self) -> None:
        self.status = 0

    def feed(self, data: bytes, now_ns: int) -> None:
        """Takes a piece of the body."""


class HttpClients:
    """`batch` clients on the running loop, each with one completion at a time."""

    def __init__(self, url: str, batch: int, stream: bool, prompt_len: int, output_len: int, vocab_size: int) -> None:
        self._pool = ConnectionPool(url)
        self._stream = stream
        self._prompt_len, self._output_len, self._vocab_size = prompt_len, output_len, vocab_size
        self._batch = batch

    def _request(self, index: int, max_tokens: int) -> bytes:
        start = index * self._prompt_len
        body = {
            "model": SERVED_NAME,
            "prompt": [(start + offset) % self._vocab_size for offset in range(self._prompt_len)],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": self._stream,
            "seed": index,
        }
        return http_request("POST", "/v1/completions", self._pool.url.netloc, {}, msgspec.json.encode(body))

    async def _client(self, index: int) -> None:
        """Completions one after the other; the first is shorter by a length of its own, so that they do not all end
        at once."""
        max_tokens = max(1, self._output_len * (index + 1) // self._batch)
        while True:
            sink = _Discard()
            await self._pool.request(self._request(index, max_tokens), sink)
            if sink.status != 200:
                raise HttpFailedError(f"a completion was answered with HTTP {sink.status}")
            max_tokens = self._output_len

    async def run(self, marks_s: tuple[float, ...], on_mark: Callable[[], None]) -> None:
        """Offers the load and calls `on_mark` after each of these seconds, one after the other; ends with the last.
        Raises HttpFailedError, OSError."""
        await self._pool.resolve()
        clients = [asyncio.ensure_future(self._client(index)) for index in range(self._batch)]
        try:
            for wait_s in marks_s:
                done, _ = await asyncio.wait(clients, timeout=wait_s, return_when=asyncio.FIRST_EXCEPTION)
                for client in done:
                    client.result()
                on_mark()
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            self._pool.close()
