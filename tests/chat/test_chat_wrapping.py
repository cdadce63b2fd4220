"""What an answer looks like on a terminal, whatever the pieces that it comes in."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from albireo.chat.terminal import WrappedText


def shown(pieces: list[str], width: int = 31, is_terminal: bool = True) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=is_terminal, color_system=None, highlight=False)
    text = WrappedText(console)
    for piece in pieces:
        text.write(piece)
    text.end()
    return file.getvalue()


def test_lines_break_between_words_and_have_a_margin() -> None:
    lines = shown(["one two three four five six seven eight"]).split("\n")
    assert [line.rstrip() for line in lines] == ["  one two three four five six", "  seven eight", ""]


def test_a_word_that_comes_in_pieces_is_not_torn() -> None:
    whole = shown(["the quick brown fox jumps over it"])
    assert shown(list("the quick brown fox jumps over it")) == whole


def test_lines_of_the_model_s_own_are_kept() -> None:
    assert shown(["a\n\n  b", "\nc"]) == "  a\n\n    b\n  c\n"


@given(st.lists(st.text(st.sampled_from("ab \n漢é🙂-"), max_size=30), max_size=6))
def test_no_line_is_wider_than_the_terminal_and_no_character_is_lost(pieces: list[str]) -> None:
    lines = shown(pieces).split("\n")
    assert max(cell_len(line) for line in lines) <= 30
    assert "".join("".join(lines).split()) == "".join("".join(pieces).split())


@pytest.mark.parametrize("control", ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\r", "\x08", "\x7f"])
def test_what_a_model_writes_cannot_steer_the_terminal(control: str) -> None:
    text = shown([f"before{control}after and more"])
    assert not any(ord(character) < 32 and character != "\n" for character in text)
    assert not any(127 <= ord(character) < 160 for character in text)
    assert "before" in text


def test_markup_of_the_display_is_plain_text_in_an_answer() -> None:
    assert shown(["[red]x[/red] :smile:"]) == "  [red]x[/red] :smile:\n"


def test_into_a_file_the_answer_goes_as_it_is() -> None:
    long = "word " * 40
    assert shown([long, "end"], is_terminal=False) == f"{long}end\n"
