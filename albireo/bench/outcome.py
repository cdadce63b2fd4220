"""From the raw record of a response to what counts: tokens, times, success. All JSON decoding happens here."""

from collections.abc import Sequence
from itertools import pairwise

import msgspec
from msgspec import Struct

from albireo.bench.event_stream import EventStream


class PromptTokensDetails(Struct):
    cached_tokens: int | None = None


class Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None


class Delta(Struct, frozen=True):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class Choice(Struct):
    text: str | None = None
    delta: Delta = Delta()
    """In place of `text`, of a chat."""
    finish_reason: str | None = None

    @property
    def has_tokens(self) -> bool:
        delta = self.delta
        return bool(self.text or delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls)


class CompletionEvent(Struct):
    """One event of a streamed completion, of a text or of a chat; other fields are ignored."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()
    """As it came, whatever its shape; empty when there was none."""


class RequestOutcome(Struct, frozen=True):
    """One request. Times in nanoseconds of `time.perf_counter_ns()`."""

    start_ns: int
    end_ns: int
    error: str | None = None
    """None: it succeeded, and the fields below hold."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    counted_by_server: bool = False
    """False: there was no usage, and each chunk counts as one token."""
    token_chunks: int = 0
    empty_start: bool = False
    """The first chunk carried no text: a header, or a token whose character was not yet whole."""
    ttft_ns: int = 0
    """Start to first chunk."""
    e2e_ns: int = 0
    """Start to last chunk."""
    itl_ns: Sequence[int] = ()
    """Gaps between chunks; one gap however many tokens a chunk holds, 0 between chunks that came in one read."""

    @property
    def tpot_ns(self) -> float | None:
        """Time per token after the first; None for a single token."""
        return (self.e2e_ns - self.ttft_ns) / (self.output_tokens - 1) if self.output_tokens > 1 else None


def judge(stream: EventStream, prompt_tokens: int) -> RequestOutcome:
    """The outcome of a finished response; `prompt_tokens` is what we sent, used where the server gives no usage."""
    error = stream.error or _http_error(stream)
    try:
        first, last = (_decode(payload) if payload else CompletionEvent() for payload in (stream.first, stream.last))
        others = [_decode(payload) for payload in stream.other] if stream.status == 200 else []
    except msgspec.MsgspecError as problem:
        error = error or f"an event is not the JSON of a completion: {problem}"
        first, last, others = CompletionEvent(), CompletionEvent(), []
    error = error or _stream_error(stream, last, others)
    if error is not None:
        return RequestOutcome(stream.start_ns, stream.end_ns, error)
    ending = last.choices[0]
    chunks = stream.chunk_ns
    # An empty chunk that only says why the stream ended delivers no token (llama.cpp's): no gap is measured to it.
    tokens_until = (
        len(chunks) - 1 if len(chunks) > 1 and ending.finish_reason and not ending.has_tokens else len(chunks)
    )
    usage = next((event.usage for event in reversed([last, *others]) if event.usage is not None), Usage())
    counted = usage.completion_tokens is not None
    details = usage.prompt_tokens_details or PromptTokensDetails()
    return RequestOutcome(
        start_ns=stream.start_ns,
        end_ns=stream.end_ns,
        prompt_tokens=prompt_tokens if usage.prompt_tokens is None else usage.prompt_tokens,
        output_tokens=usage.completion_tokens if usage.completion_tokens is not None else tokens_until,
        cached_tokens=details.cached_tokens or 0,
        counted_by_server=counted,
        token_chunks=tokens_until,
        empty_start=not first.choices[0].has_tokens,
        ttft_ns=chunks[0] - stream.start_ns,
        e2e_ns=chunks[-1] - stream.start_ns,
        itl_ns=[after - before for before, after in pairwise(chunks[:tokens_until])],
    )


def _decode(payload: bytes) -> CompletionEvent:
    return msgspec.json.decode(payload, type=CompletionEvent)


def _http_error(stream: EventStream) -> str | None:
    if stream.status == 200:
        return None
    body = b"".join(stream.other).decode(errors="replace").strip()
    return f"HTTP {stream.status}: {body}" if body else f"HTTP {stream.status}"


def _stream_error(stream: EventStream, last: CompletionEvent, others: Sequence[CompletionEvent]) -> str | None:
    for event in others:
        error = bytes(event.error).decode(errors="replace")
        if error not in ("", "null"):
            return f"error in the stream: {error}"
    if not stream.chunk_ns:
        return "the stream ended without a token"
    if not stream.done and last.choices[0].finish_reason is None:
        return "the stream ended without a finish_reason"
    return None
