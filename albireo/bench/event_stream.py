"""What one streamed completion sent and when: the hot path of the benchmark client.

A chunk is worth one timestamp and one regular-expression search; JSON is decoded after the run, and only of the
first and the last token event and of the few events that carry no token (usage, errors).
"""

import re
from array import array

_TOKEN_EVENT = re.compile(rb'"choices"\s*:\s*\[\s*\{')
"""Tells a chunk with tokens from usage and error events. A generated text cannot forge it: JSON escapes its quotes."""

_KEPT_BYTES = 4096
"""Most of a non-200 body that is kept for the error message."""


class EventStream:
    """Receives one response: its status, then its body in pieces split anywhere.

    Lines beginning with `data:` are events. An event may not span several data lines, which SSE allows and no
    OpenAI-compatible server does. Times are `time.perf_counter_ns()`.
    """

    __slots__ = ("_tail", "chunk_ns", "done", "end_ns", "error", "first", "last", "other", "start_ns", "status")

    def __init__(self) -> None:
        self.status = 0
        self.start_ns = 0
        """Just before the connection was asked for."""
        self.end_ns = 0
        """When the response had ended, or failed."""
        self.chunk_ns = array("q")
        """Arrival of each event with choices. Events that came in one read share one time."""
        self.first = b""
        self.last = b""
        """Payloads of the first and the last of those events."""
        self.other: list[bytes] = []
        """Payloads of events without choices, in order; the body of a response that is not 200."""
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
        if _TOKEN_EVENT.search(payload) is not None:
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
