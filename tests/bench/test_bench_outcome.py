import json
import re

import pytest

from albireo.bench.event_stream import CHAT_TOKENS, COMPLETION_TOKENS, EventStream
from albireo.bench.outcome import judge

MS = 1_000_000


def token(text: str = "a", finish_reason: str | None = None, **more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}], **more}


USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}


def said(finish_reason: str | None = None, **delta: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def streamed(
    events: list[dict[str, object] | str], status: int = 200, token_event: re.Pattern[bytes] = COMPLETION_TOKENS
) -> EventStream:
    """Starts at 100 ms; event i arrives at 110 + 10 i ms."""
    stream = EventStream(token_event)
    stream.status, stream.start_ns = status, 100 * MS
    for i, event in enumerate(events):
        payload = event if isinstance(event, str) else json.dumps(event)
        stream.feed(b"data: " + payload.encode() + b"\n\n", (110 + 10 * i) * MS)
    stream.end_ns = 500 * MS
    return stream


def test_times_are_measured_from_the_start_and_between_chunks() -> None:
    outcome = judge(streamed([token(), token(), token(), token("a", "length"), "[DONE]"]), prompt_tokens=7)
    assert outcome.error is None
    assert outcome.ttft_ns == 10 * MS
    assert outcome.e2e_ns == 40 * MS
    assert list(outcome.itl_ns) == [10 * MS] * 3
    assert outcome.tpot_ns == 10 * MS


def test_usage_decides_the_token_counts() -> None:
    outcome = judge(streamed([token(), token("b", "length"), {"choices": [], "usage": USAGE}, "[DONE]"]), 7)
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.cached_tokens) == (9, 4, 8)
    assert outcome.counted_by_server
    assert outcome.token_chunks == 2
    assert outcome.tpot_ns == 10 * MS / 3
    assert list(outcome.itl_ns) == [10 * MS]


def test_usage_may_ride_on_the_last_token_event() -> None:
    outcome = judge(streamed([token(), token("b", "length", usage=USAGE), "[DONE]"]), 7)
    assert outcome.output_tokens == 4


def test_without_usage_chunks_are_counted() -> None:
    outcome = judge(streamed([token(), token("b"), token("c", "stop"), "[DONE]"]), 7)
    assert (outcome.prompt_tokens, outcome.output_tokens) == (7, 3)
    assert not outcome.counted_by_server


def test_an_empty_last_chunk_delivers_no_token() -> None:
    outcome = judge(streamed([token(), token(), token("", "length"), "[DONE]"]), 7)
    assert outcome.output_tokens == 2
    assert outcome.token_chunks == 2
    assert list(outcome.itl_ns) == [10 * MS]


def test_an_empty_first_chunk_is_told() -> None:
    assert judge(streamed([token(""), token("a", "stop")]), 7).empty_start
    assert not judge(streamed([token("a"), token("", "stop")]), 7).empty_start


@pytest.mark.parametrize(
    "first",
    [{"content": "a"}, {"reasoning": "a"}, {"reasoning_content": "a"}, {"tool_calls": [{"index": 0, "function": {}}]}],
)
def test_a_chat_begins_with_its_first_piece_of_text_reasoning_or_call(first: dict[str, object]) -> None:
    header = said(role="assistant", content="")
    usage: dict[str, object] = {"choices": [], "usage": USAGE}
    events: list[dict[str, object] | str] = [
        header,
        said(None, **first),
        said(content='"finish_reason": "x"'),
        said("stop"),
    ]
    outcome = judge(streamed([*events, usage, "[DONE]"], token_event=CHAT_TOKENS), 7)
    assert outcome.error is None
    assert outcome.ttft_ns == 20 * MS
    assert list(outcome.itl_ns) == [10 * MS]
    assert (outcome.token_chunks, outcome.output_tokens, outcome.empty_start) == (2, 4, False)


def test_a_chat_of_its_end_alone_is_an_answer() -> None:
    outcome = judge(streamed([said(role="assistant", content=""), said("stop"), "[DONE]"], token_event=CHAT_TOKENS), 7)
    assert (outcome.error, outcome.ttft_ns) == (None, 20 * MS)
    only_header = judge(streamed([said(role="assistant", content=""), "[DONE]"], token_event=CHAT_TOKENS), 7)
    assert only_header.error == "the stream ended without a token"


def test_a_single_token_has_no_time_per_further_token() -> None:
    outcome = judge(streamed([token("a", "length"), "[DONE]"]), 7)
    assert outcome.tpot_ns is None
    assert list(outcome.itl_ns) == []


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (streamed([], status=500), "HTTP 500"),
        (streamed(["[DONE]"]), "without a token"),
        (streamed([token(), token()]), "without a finish_reason"),
        (streamed([token(), {"error": {"message": "out of memory"}}, "[DONE]"]), "out of memory"),
        (streamed([token(), "{broken", "[DONE]"]), "not the JSON of a completion"),
        (streamed([{"choices": [{"text": 5, "finish_reason": "stop"}]}, "[DONE]"]), "not the JSON of a completion"),
    ],
)
def test_a_failed_request_says_why(stream: EventStream, reason: str) -> None:
    outcome = judge(stream, 7)
    assert outcome.error is not None
    assert reason in outcome.error
    assert outcome.output_tokens == 0


def test_an_error_response_is_quoted_with_its_status() -> None:
    stream = EventStream()
    stream.status = 404
    stream.feed(b'{"error": {"message": "no such model"}}', 0)
    assert judge(stream, 7).error == 'HTTP 404: {"error": {"message": "no such model"}}'


def test_a_transport_error_comes_before_what_the_stream_lacks() -> None:
    stream = streamed([token()])
    stream.error = "ConnectionClosedError: gone"
    assert judge(stream, 7).error == "ConnectionClosedError: gone"
