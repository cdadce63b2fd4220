"""Streamed chat completions over the standard library's HTTP client, one at a time, in the caller's thread.

Blocking on purpose: a Ctrl-C interrupts the read, and closing the connection is what aborts a request.
"""

import http.client
import json
import socket
import ssl
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from albireo.server_url import split_url

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 600.0
"""Between two pieces of an answer: the first may wait in the server's queue, and for a long prompt."""
_MAX_ERROR_BYTES = 64 * 1024

Message = dict[str, str]
"""`role` and `content`."""


class ChatError(Exception):
    """There is no answer, or no more of it; the text is one line."""


@dataclass(slots=True)
class Piece:
    """What one event of a stream brought."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None


@dataclass(slots=True)
class AnswerStats:
    """Of one answer, as the client saw it; times in seconds of `time.monotonic`."""

    started_s: float
    first_s: float | None = None
    last_s: float = 0.0
    num_pieces: int = 0
    prompt_tokens: int | None = None
    """As the server counted; None where it did not say, as for an answer that was stopped. So for the next."""
    cached_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def num_tokens(self) -> int:
        """Of the answer; pieces stand for tokens where the server did not count."""
        return self.num_pieces if self.completion_tokens is None else self.completion_tokens

    @property
    def tokens_per_s(self) -> float | None:
        """After the first token; None for an answer too short to say."""
        if self.first_s is None or self.num_tokens < 2 or self.last_s <= self.first_s:
            return None
        return (self.num_tokens - 1) / (self.last_s - self.first_s)


class ChatClient:
    """One model of one server."""

    def __init__(self, base_url: str, api_key: str | None, model: str | None = None, insecure: bool = False) -> None:
        """`base_url`: as of `split_url`. Asks the server for its first model when none is named. Raises ChatError."""
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._url, self._unix_path = split_url(self.base_url)
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._ssl = _ssl_context(insecure) if self._url.scheme == "https" else None
        self.model = model or self._first_model()
        self.stats: AnswerStats | None = None
        """Of the last answer."""

    def stream(self, messages: Sequence[Message], fields: Mapping[str, object]) -> Generator[Piece, None, None]:
        """The next answer, piece by piece; leaving early aborts the request. Raises ChatError."""
        body = {
            "model": self.model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
        self.stats = stats = AnswerStats(time.monotonic())
        with self._response("POST", "/v1/chat/completions", body) as response:
            for line in response:
                if not line.startswith(b"data:"):
                    continue
                payload = line[5:].strip()
                if payload == b"[DONE]":
                    return
                piece = _read_event(payload, stats)
                if piece.text or piece.reasoning:
                    stats.last_s = time.monotonic()
                    stats.first_s = stats.first_s or stats.last_s
                    stats.num_pieces += 1
                yield piece
        raise ChatError("the server closed the connection in the middle of the answer")

    def _first_model(self) -> str:
        with self._response("GET", "/v1/models", None) as response:
            try:
                return str(json.loads(response.read())["data"][0]["id"])
            except (ValueError, LookupError, TypeError):
                raise ChatError(f"{self.base_url} lists no model; name one with --model") from None

    @contextmanager
    def _response(self, method: str, path: str, body: object) -> Iterator[http.client.HTTPResponse]:
        """A response with status 200; the connection is closed at the end. Raises ChatError."""
        connection = self._connection()
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            reason = error.strerror or str(error) or type(error).__name__
            raise ChatError(
                f"cannot reach {self.base_url}: {reason}; start a server with `albireo-run serve`, or name one that "
                "runs with --base-url"
            ) from None
        try:
            connection.sock.settimeout(ANSWER_TIMEOUT_S)
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, self._url.path + path, content, self._headers)
            response = connection.getresponse()
            if response.status != 200:
                raise ChatError(_error_of(response))
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise ChatError(f"the connection to {self.base_url} was lost: {error or type(error).__name__}") from None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._unix_path is not None:
            return _UnixConnection(host, self._unix_path, self._ssl)
        if self._ssl is not None:
            return http.client.HTTPSConnection(host, port, timeout=CONNECT_TIMEOUT_S, context=self._ssl)
        return http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_S)


class _UnixConnection(http.client.HTTPConnection):
    """Over a Unix socket; `context`: with TLS."""

    def __init__(self, host: str, path: str, context: ssl.SSLContext | None) -> None:
        super().__init__(host, timeout=CONNECT_TIMEOUT_S)
        self._path = path
        self._context = context

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
        if self._context is not None:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self.host)


def _ssl_context(insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _read_event(payload: bytes, stats: AnswerStats) -> Piece:
    """Raises ChatError for an error event, or for what is no event of a chat."""
    try:
        event: dict[str, Any] = json.loads(payload)
        if event.get("error"):
            raise ChatError(_one_line(event["error"]))
        usage = event.get("usage")
        if usage:
            stats.prompt_tokens, stats.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
            stats.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        if not event.get("choices"):
            return Piece()
        choice = event["choices"][0]
        delta = choice.get("delta") or {}
        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
        return Piece(delta.get("content") or "", thought, choice.get("finish_reason"))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ChatError("the server sent something that is no event of a chat completion") from None


def _error_of(response: http.client.HTTPResponse) -> str:
    """An error response as one line: OpenAI's message where there is one."""
    content = response.read(_MAX_ERROR_BYTES)
    text = content.decode(errors="replace")
    with suppress(ValueError, LookupError, TypeError):
        text = _one_line(json.loads(content)["error"])
    hint = " (set --api-key or ALBIREO_API_KEY)" if response.status == 401 else ""
    return f"{' '.join(text.split())[:500] or response.reason} (HTTP {response.status}){hint}"


def _one_line(error: object) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(message).split())
