"""The pieces of a stream put together are what the library makes of all the tokens at once."""

from functools import cache

import pytest
import tokenizer_files
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from albireo.errors import StartupError
from albireo.frontend.detokenizer import REPLACEMENT, Detokenizer, DetokenizerFactory


@cache
def tokenizer(kind: str) -> Tokenizer:
    return tokenizer_files.byte_level() if kind == "byte-level" else tokenizer_files.sentencepiece()


@cache
def factory(kind: str) -> DetokenizerFactory:
    return DetokenizerFactory(tokenizer(kind))


def pieces(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.feed(id_) for id_ in ids), detokenizer.flush()]


@cache
def byte_tokens(kind: str) -> dict[int, int]:
    """The tokens that stand for single bytes."""
    vocab = tokenizer(kind).get_vocab()
    if kind == "sentencepiece":
        return {byte: vocab[f"<0x{byte:02X}>"] for byte in range(256)}
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: vocab[chr(byte)] for byte in printable} | {b: vocab[chr(256 + i)] for i, b in enumerate(others)}


def token_id(kind: str, token: str) -> int:
    id_ = tokenizer(kind).token_to_id(token)
    assert id_ is not None
    return id_


def byte_ids(kind: str, data: bytes) -> list[int]:
    return [byte_tokens(kind)[byte] for byte in data]


some_ids = st.lists(st.integers(0, 399) | st.integers(3, 258), max_size=40)


@settings(deadline=None, max_examples=200)
@given(some_ids, st.booleans())
def test_any_byte_level_tokens_come_out_as_decoded_at_once(ids: list[int], skip: bool) -> None:
    text = "".join(pieces(factory("byte-level")(skip), ids))
    assert text == tokenizer("byte-level").decode(ids, skip_special_tokens=skip)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(0, 400), max_size=10), st.binary(max_size=6), st.lists(st.integers(0, 400), max_size=10))
def test_bytes_that_are_no_text_come_out_as_decoded_at_once(before: list[int], data: bytes, after: list[int]) -> None:
    ids = [*before, *byte_ids("byte-level", data), *after]
    assert "".join(pieces(factory("byte-level")(True), ids)) == tokenizer("byte-level").decode(ids)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text("a世é😀 \n", max_size=4).map(str.encode) | st.integers(259, 330), max_size=12))
def test_sentencepiece_text_comes_out_as_decoded_at_once(parts: list[bytes | int]) -> None:
    ids: list[int] = []
    for part in parts:
        ids += [part] if isinstance(part, int) else byte_ids("sentencepiece", part)
    prompt = tokenizer("sentencepiece").encode("Hello").ids
    both = tokenizer("sentencepiece").decode(prompt + ids)
    assert "Hello" + "".join(pieces(factory("sentencepiece")(True), ids)) == both


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(128, 255), min_size=1, max_size=8).map(bytes))
def test_a_run_of_bytes_that_is_no_text_is_one_replacement_per_byte(data: bytes) -> None:
    ids = [*byte_ids("sentencepiece", data), token_id("sentencepiece", "▁wo")]
    text = "".join(pieces(factory("sentencepiece")(True), ids))
    whole = data.decode(errors="ignore")
    if not whole:
        assert text == tokenizer("sentencepiece").decode([ids[-1], *ids])[2:]
        assert text == REPLACEMENT * len(data) + " wo"
    else:  # characters that were complete have been shown, what follows in the run has not
        assert text.endswith(" wo")
        assert len(text.removesuffix(" wo").encode("utf-8", "replace")) >= len(data)


def test_no_piece_holds_half_a_character() -> None:
    ids = byte_ids("byte-level", "a😀é".encode())
    assert pieces(factory("byte-level")(True), ids) == ["a", "", "", "", "😀", "", "é", ""]
    ids = byte_ids("sentencepiece", "世a".encode())
    assert pieces(factory("sentencepiece")(True), ids) == ["", "", "世", "a", ""]


def test_a_text_that_ends_inside_a_character_ends_with_a_replacement() -> None:
    ids = byte_ids("byte-level", "😀".encode()[:3])
    assert pieces(factory("byte-level")(True), ids) == ["", "", "", REPLACEMENT]


def test_output_keeps_the_space_before_its_first_word() -> None:
    assert factory("sentencepiece")(True).feed(token_id("sentencepiece", "▁wo")) == " wo"


def test_special_tokens_are_shown_only_on_request() -> None:
    assert factory("byte-level")(True).feed(2) == ""
    assert factory("byte-level")(False).feed(2) == "<|im_end|>"


def test_ids_beyond_the_vocabulary_are_no_text() -> None:
    assert factory("byte-level")(True).feed(100_000) == ""


def test_an_added_token_with_characters_outside_the_alphabet_is_its_own_text() -> None:
    backend = tokenizer_files.byte_level()
    backend.add_tokens([AddedToken("<a b\u3000>", normalized=False)])
    id_ = backend.token_to_id("<a b\u3000>")
    assert id_ is not None
    assert DetokenizerFactory(backend)(True).feed(id_) == backend.decode([id_]) == "<a b\u3000>"


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(), decoders.Replace("_", " ")])
def test_a_vocabulary_of_another_kind_is_refused(decoder: decoders.Decoder | None) -> None:
    backend = Tokenizer(models.BPE())
    if decoder is not None:
        backend.decoder = decoder
    with pytest.raises(StartupError, match="decoder"):
        DetokenizerFactory(backend)
