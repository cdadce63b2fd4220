"""Words that must not appear -> the token sequences that spell them."""

from pathlib import Path

import pytest
import tokenizer_files
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from albireo import limits
from albireo.errors import RequestError
from albireo.frontend.bad_words import bad_word_sequences
from albireo.frontend.tokenizer import Tokenizer

VOCAB_SIZE = 10_000


def load(path: Path) -> Tokenizer:
    return Tokenizer(path, (2,), "", 256)


@pytest.fixture(scope="module")
def byte_level(tokenizer_path: Path) -> Tokenizer:
    return load(tokenizer_path)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load(tokenizer_files.write(tmp_path_factory.mktemp("sp"), tokenizer_files.sentencepiece()))


def sequences(tokenizer: Tokenizer, *words: str, vocab_size: int = VOCAB_SIZE) -> set[tuple[int, ...]]:
    result = bad_word_sequences(words, tokenizer, vocab_size)
    assert len(set(result)) == len(result)
    return set(result)


def test_a_word_is_forbidden_with_and_without_a_space_in_front(byte_level: Tokenizer, tokenizer: Backend) -> None:
    assert sequences(byte_level, "you") == {tuple(tokenizer.encode(text).ids) for text in ("you", " you")}


def test_space_in_front_of_a_word_does_not_count(byte_level: Tokenizer) -> None:
    assert sequences(byte_level, " you") == sequences(byte_level, "you", "\t you") == sequences(byte_level, "you")


def test_sentencepiece_s_own_space_is_not_part_of_a_word(sentencepiece: Tokenizer) -> None:
    backend = sentencepiece.backend
    spelled = {tuple(backend.id_to_token(id_) for id_ in ids) for ids in sequences(sentencepiece, "two")}
    assert spelled == {("t", "w", "o"), ("▁t", "w", "o")}


def test_a_spelling_that_ends_with_another_is_forbidden_by_it(sentencepiece: Tokenizer) -> None:
    # "▁" and "x" do not merge: whatever ends with "x" is forbidden already
    assert [len(ids) for ids in sequences(sentencepiece, "x")] == [1]


def test_a_control_token_can_be_a_bad_word(byte_level: Tokenizer, tokenizer: Backend) -> None:
    assert (tokenizer.token_to_id("<think>"),) in sequences(byte_level, "<think>")


def test_what_the_model_cannot_say_takes_no_room(byte_level: Tokenizer, tokenizer: Backend) -> None:
    plain, spaced = (tuple(tokenizer.encode(text).ids) for text in ("you", " you"))
    assert sequences(byte_level, "you", vocab_size=max(spaced)) == {plain} - {spaced}


def test_the_largest_word_and_table_pass_and_one_more_does_not(byte_level: Tokenizer, tokenizer: Backend) -> None:
    word = "q" * limits.MAX_BAD_WORD_TOKENS
    assert len(tokenizer.encode(word).ids) == limits.MAX_BAD_WORD_TOKENS
    assert max(map(len, sequences(byte_level, word))) == limits.MAX_BAD_WORD_TOKENS
    with pytest.raises(RequestError, match=r"bad_words\[1\] must have at most 16 tokens, not 17"):
        bad_word_sequences(["ok", word + "q"], byte_level, VOCAB_SIZE)


@settings(max_examples=100, deadline=None)
@given(word=st.text(st.sampled_from("abyou the <>/\n\té😀q世"), min_size=1, max_size=8))
def test_an_output_with_the_word_has_a_forbidden_sequence(byte_level: Tokenizer, word: str) -> None:
    if not word.strip():
        return
    forbidden = sequences(byte_level, word)
    for text in ("(" + word.lstrip(), "( " + word.lstrip()):
        ids = byte_level.backend.encode(text, add_special_tokens=False).ids
        if byte_level.backend.encode("(").ids == ids[:1]:  # else another token than the word's begins it
            tails = {tuple(ids[-n:]) for n in range(1, len(ids) + 1)}
            spelled = byte_level.encode_inner(text[1:])
            assert tuple(spelled) in forbidden or tails & forbidden
