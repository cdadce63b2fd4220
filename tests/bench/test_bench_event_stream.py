import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from albireo.bench.event_stream import EventStream


def event(text: str, finish_reason: str | None = None) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": text, "finish_reason": finish_reason}]}).encode()


def fed(pieces: list[bytes], status: int = 200) -> EventStream:
    stream = EventStream()
    stream.status = status
    for time_ns, piece in enumerate(pieces):
        stream.feed(piece, time_ns)
    return stream


def cut(body: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut_at % (len(body) + 1) for cut_at in at), len(body)]
    return [body[begin:end] for begin, end in pairwise(edges)]


@given(
    texts=st.lists(st.text(max_size=20), min_size=1, max_size=8),
    newline=st.sampled_from([b"\n", b"\r\n"]),
    cuts=st.lists(st.integers(0, 10_000), max_size=12),
)
def test_events_are_the_same_wherever_the_body_is_split(texts: list[str], newline: bytes, cuts: list[int]) -> None:
    usage = b'data: {"choices":[],"usage":{"completion_tokens":3}}'
    parts = [b": a comment", *(event(text) for text in texts), usage, b"data: [DONE]"]
    stream = fed(cut(b"".join(part + newline * 2 for part in parts), cuts))
    assert len(stream.chunk_ns) == len(texts)
    assert json.loads(stream.first)["choices"][0]["text"] == texts[0]
    assert json.loads(stream.last)["choices"][0]["text"] == texts[-1]
    assert stream.other == [usage[6:]]
    assert stream.done


def test_an_event_counts_when_its_last_byte_has_come() -> None:
    whole = event("a") + b"\n\n"
    stream = fed([whole[:10], whole[10:-2], whole[-2:], whole])
    assert list(stream.chunk_ns) == [2, 3]


def test_events_of_one_read_share_its_time() -> None:
    stream = fed([b"", (event("a") + b"\n\n") * 3])
    assert list(stream.chunk_ns) == [1, 1, 1]


def test_an_event_without_choices_is_no_token_even_if_it_quotes_one() -> None:
    payload = json.dumps({"choices": [], "note": '"choices":[{"text":"a"}]'}).encode()
    stream = fed([b"data:" + payload + b"\n\n"])
    assert len(stream.chunk_ns) == 0
    assert stream.other == [payload]


def test_the_body_of_an_error_response_is_kept_up_to_a_bound() -> None:
    stream = fed([b'{"error":', b'"no"}'], status=400)
    assert b"".join(stream.other) == b'{"error":"no"}'
    assert len(b"".join(fed([b"x" * 3000] * 5, status=500).other)) == 4096
