"""Stop strings: found wherever the pieces are cut, never shown, and no more held back than may become one."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albireo.frontend.stop_strings import StopStrings

texts = st.text("ab<", max_size=40)
some_stops = st.lists(st.text("ab<", min_size=1, max_size=6), min_size=1, max_size=4, unique=True).map(tuple)


def cut(text: str, positions: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(position % (len(text) + 1) for position in positions)})
    return [text[start:end] for start, end in pairwise(edges)]


def expected(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """By definition: the first character at which a stop string ends, and the longest that ends there."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=400, deadline=None)
@given(texts, some_stops, st.lists(st.integers(0, 100), max_size=20))
def test_the_text_ends_before_the_first_stop_string(text: str, stops: tuple[str, ...], positions: list[int]) -> None:
    watcher = StopStrings(stops, include_in_output=False)
    shown = ""
    for piece in cut(text, positions):
        shown += watcher.feed(piece)
        if watcher.matched is not None:
            break
    shown += watcher.flush()
    assert (shown, watcher.matched) == expected(text, stops)


@settings(max_examples=200, deadline=None)
@given(texts, some_stops, st.lists(st.integers(0, 100), max_size=20))
def test_what_is_held_back_is_the_longest_beginning_of_a_stop_string(
    text: str, stops: tuple[str, ...], positions: list[int]
) -> None:
    watcher = StopStrings(stops, include_in_output=False)
    shown = seen = ""
    for piece in cut(text, positions):
        shown += watcher.feed(piece)
        seen += piece
        if watcher.matched is not None:
            return
        beginnings = [stop[:length] for stop in stops for length in range(len(stop))]
        assert seen == shown + max((each for each in beginnings if seen.endswith(each)), key=len)


@pytest.mark.parametrize("pieces", [["one STOP two"], ["one S", "TO", "P two"], list("one STOP two")])
def test_an_included_stop_string_is_shown_and_nothing_behind_it(pieces: list[str]) -> None:
    watcher = StopStrings(("STOP",), include_in_output=True)
    shown = ""
    for piece in pieces:
        shown += watcher.feed(piece)
        if watcher.matched:
            break
    assert shown == "one STOP"


def test_text_without_a_beginning_of_a_stop_string_passes_at_once() -> None:
    watcher = StopStrings(("\n\n", "END"), include_in_output=False)
    assert watcher.feed("hello ") == "hello "
    assert watcher.feed("w\n") == "w"
    assert watcher.feed("E") == "\n"
    assert watcher.flush() == "E"


@pytest.mark.parametrize("early", ["ab", "xabx", "aab", "abab"])
def test_what_completes_a_string_too_early_is_text(early: str) -> None:
    watcher = StopStrings(("ab", "bab"), include_in_output=False)
    shown = watcher.feed(early, may_match=False)
    matched_early = watcher.matched
    shown += watcher.feed("-ab-")
    assert (matched_early, shown, watcher.matched) == (None, early + "-", "ab")


def test_a_string_that_began_too_early_to_end_is_found_when_it_ends_later() -> None:
    watcher = StopStrings(("aba",), include_in_output=False)
    assert watcher.feed("aba", may_match=False) == "ab"
    assert watcher.feed("ba") == ""
    assert watcher.matched == "aba"
