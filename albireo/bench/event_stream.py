"""What one streamed completion, of a text or of a chat, sent and when: the hot path of the benchmark client.

A chunk is worth one timestamp and one regular-expression search; JSON is decoded after the run, and only of the
first and the last token event and of the few events that carry no token (usage, errors).
"""

import re
from array import array

COMPLETION_TOKENS = re.compile(rb'"choices"\s*:\s*\[\s*\{')
"""Tells a chunk with tokens from usage and error events. A generated text cannot forge it: JSON escapes its quotes."""

CHAT_TOKENS = re.compile(
    rb'"(?:content|reasoning|reasoning_content|finish_reason)"\s*:\s*"[^"]|"tool_calls"\s*:\s*\[\s*\{'
)
"""The same for a chat, whose first event is often a header with a role and no token. As in a completion, the event that
only says why the stream ended is one of them: a chat without a token has at least its end."""

_KEPT_BYTES = 4096
"""Most of a non-200 body that is kept for the error message."""


class EventStream:
    """Receives one response: its status, then its body in pieces split anywhere.

    Lines beginning with `data:` are events; `token_event` finds those that carry tokens. An event may not span several
    data lines, which SSE allows and no OpenAI-compatible server does. Times are `time.perf_counter_ns()`.
    """

    __slots__ = (
        "_tail", "_token_event", "chunk_ns", "done", "end_ns", "error", "first", "last", "other", "start_ns", "status"
    )  # fmt: skip

    def __init__(self, token_event: re.Pattern[bytes] = COMPLETION_TOKENS) -> None:
        self._token_event = token_event
        self.status = 0
        self.start_ns = 0
        """Just before the connection was asked for."""
        self.end_ns = 0
        """When the response had ended, or failed."""
        self.chunk_ns = array("q")
        """Arrival of each event with tokens. Events that came in one read share one time."""
        self.first = b""
        self.last = b""
        """Payloads of the first and the last of those events."""
        self.other: list[bytes] = []
        """Payloads of the others, in order; the body of a response that is not 200."""
        self.done = False
        """[DONE] was seen."""
        self.error: str | None = None
        """Why the transport failed, if it did."""
        self._tail = b""

    def feed(self, data: bytes, now_ns: int) -> None:
        """Takes the next piece of the body, received at `now_ns`."""
        if self.status != 200:
            self._keep_error_body(data)
            return
        lines = (self._tail + data).split(b"\n") if self._tail else data.split(b"\n")
        self._tail = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now_ns)

    def _event(self, payload: bytes, now_ns: int) -> None:
        if self._token_event.search(payload) is not None:
            if not self.chunk_ns:
                self.first = payload
            self.chunk_ns.append(now_ns)
            self.last = payload
        elif payload == b"[DONE]":
            self.done = True
        else:
            self.other.append(payload)

    def _keep_error_body(self, data: bytes) -> None:
        kept = b"".join(self.other)
        self.other = [kept + data[: _KEPT_BYTES - len(kept)]]
