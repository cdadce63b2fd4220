"""Which tokens a message's text is said to be made of."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from albireo.frontend.detokenizer import DetokenizerFactory
from albireo.frontend.message_parts import MessageParser, Part, ReasoningPart, TextPart
from albireo.frontend.output_parsers.hermes import HermesParser
from albireo.frontend.output_parsers.reasoning import BEGIN, END, PlainText, ReasoningParser
from albireo.frontend.reasoning_tokens import ReasoningTokens
from albireo.frontend.responses.scored_parser import ScoredParser

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "<b>"}}\n</tool_call>'
TEXTS = st.lists(
    st.sampled_from([
        "<", "</", "</th", "t", "think>", "<tool", "_call>", "\n", " ", "Hello", "world.", "😀", "ü", "\\", '"', "{",
    ]), max_size=12,
).map("".join)  # fmt: skip
LONGEST = 8
"""Characters of a token: what it may have beside a part's."""
MARKERS = (BEGIN, END, "<tool_call>", "</tool_call>")


@pytest.fixture(scope="module")
def texts(tokenizer: Tokenizer) -> DetokenizerFactory:
    return DetokenizerFactory(tokenizer)


def read(
    parser: MessageParser, texts: DetokenizerFactory, ids: Sequence[int], sizes: Iterator[int]
) -> tuple[list[tuple[Part, list[int]]], ReasoningTokens]:
    """Every part with its tokens' ids, where so many tokens come at once as `sizes` says."""
    detokenizer, left = texts(True), list(ids)
    scored, count = ScoredParser(parser, texts(True), MARKERS), ReasoningTokens(texts(True))
    result: list[tuple[Part, list[int]]] = []
    while True:
        some, left = left[: (size := next(sizes))], left[size:]
        text = "".join(map(detokenizer.feed, some)) + ("" if left else detokenizer.flush())
        scored.add(some, [{"id": id_} for id_ in some])
        parts = scored.feed(text) + ([] if left else scored.end())
        count.add(text, some, parts)
        result += [
            (part, [entry["id"] for entry in entries]) for part, entries in zip(parts, scored.take(), strict=True)
        ]
        if not left:
            return result, count


def text_of(parts: Sequence[tuple[Part, list[int]]], kind: type[Any] = TextPart) -> str:
    return "".join(part.text for part, _ in parts if isinstance(part, kind))


def tokens_of(parts: Sequence[tuple[Part, list[int]]]) -> list[int]:
    assert not any(ids for part, ids in parts if not isinstance(part, TextPart))
    return [id_ for _, ids in parts for id_ in ids]


def joined(texts: DetokenizerFactory, ids: Sequence[int]) -> str:
    pieces = (texts.piece(id_) for id_ in ids)
    return b"".join(piece.encode() if isinstance(piece, str) else piece for piece in pieces).decode()


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=200).map(lambda sizes: iter([*sizes, *[1] * 1000]))


@given(thought=TEXTS, answer=TEXTS, sizes=SIZES)
def test_tokens_of_an_answer_behind_reasoning_are_its_text(
    texts: DetokenizerFactory, tokenizer: Tokenizer, thought: str, answer: str, sizes: Iterator[int]
) -> None:
    ids = tokenizer.encode(f"<think>{thought}</think>\n\n{answer}").ids
    parts, count = read(ReasoningParser(PlainText(), False), texts, ids, sizes)
    found = joined(texts, tokens_of(parts))
    assert found.endswith(text_of(parts)) and not found.removesuffix(text_of(parts)).strip("\n")
    whole, counted = read(ReasoningParser(PlainText(), False), texts, ids, iter([len(ids)]))
    assert (tokens_of(whole), text_of(whole)) == (tokens_of(parts), text_of(parts))
    assert counted.count == count.count <= len(ids) - len(tokens_of(parts))
    if reasoning := text_of(parts, ReasoningPart):
        assert joined(texts, ids[: count.count]).lstrip().removeprefix(BEGIN).endswith(reasoning)


@given(pieces=st.lists(TEXTS | st.just(CALL), max_size=5), sizes=SIZES)
@example(pieces=[CALL, " 😀"], sizes=iter([1] * 1000))
def test_tokens_of_calls_are_not_in_the_text_s(
    texts: DetokenizerFactory, tokenizer: Tokenizer, pieces: list[str], sizes: Iterator[int]
) -> None:
    ids = tokenizer.encode(f"<think>Yes.</think>{''.join(pieces)}").ids
    make: Callable[[], MessageParser] = lambda: ReasoningParser(HermesParser({"f"}), False)  # noqa: E731
    parts, _ = read(make(), texts, ids, sizes)
    for is_text, run in itertools.groupby(parts, lambda each: isinstance(each[0], TextPart)):
        if is_text:
            own = list(run)
            found = joined(texts, tokens_of(own))
            assert text_of(own) in found and len(found) - len(text_of(own)) < 2 * LONGEST
    whole, _ = read(make(), texts, ids, iter([len(ids)]))
    assert (tokens_of(whole), text_of(whole)) == (tokens_of(parts), text_of(parts))


def test_what_was_held_back_is_the_text_s_that_it_appears_in(texts: DetokenizerFactory, tokenizer: Tokenizer) -> None:
    ids: list[Any] = [tokenizer.token_to_id(token) for token in ("<", "<", "t", "o", "x")]
    parts, _ = read(HermesParser({"f"}), texts, ids, iter([1] * 5))
    assert [(part.text, own) for part, own in parts if isinstance(part, TextPart)] == [
        ("<", ids[:1]), ("<tox", ids[1:]),
    ]  # fmt: skip


def test_a_stop_string_s_tokens_are_dropped_and_one_that_it_cuts_is_not(texts: DetokenizerFactory) -> None:
    scored = ScoredParser(PlainText(), texts(True), ())
    backend = texts(True)
    ids = [id_ for id_ in range(3, 402) if len(backend.feed(id_)) > 2][:3]
    cut = "".join(map(texts(True).feed, ids[:2]))[:-1]
    scored.add(ids, [{"id": id_} for id_ in ids])
    parts = scored.feed(cut) + scored.end()
    assert "".join(part.text for part in parts if isinstance(part, TextPart)) == cut
    assert [entry["id"] for entries in scored.take() for entry in entries] == ids[:2]
