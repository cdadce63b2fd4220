"""`bad_words`: words that must not appear in the output -> the token sequences that would spell them."""

from collections.abc import Sequence

from albireo import limits
from albireo.errors import RequestError
from albireo.frontend.tokenizer import Tokenizer


def bad_word_sequences(words: Sequence[str], tokenizer: Tokenizer, vocab_size: int) -> tuple[tuple[int, ...], ...]:
    """Each word in the middle of a word and at its beginning, behind a space, where that is spelled by other tokens.

    As in vLLM, space in front of a word does not count. Unlike there, a word is found behind a space even if its
    tokens are then more or fewer. Raises RequestError for words without a letter, and for what the device's table
    cannot hold.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for index, word in enumerate(words):
        field = f"bad_words[{index}]"
        stripped = word.lstrip()
        plain, spaced = (tuple(tokenizer.encode_inner(text)) for text in (stripped, " " + stripped))
        if not stripped or not plain:
            raise RequestError(f"{field} must not be only spaces", field=field)
        sequences[plain] = None
        if spaced[-len(plain) :] != plain:  # else the plain sequence forbids it already
            sequences[spaced] = None
        if (longest := max(len(plain), len(spaced) if spaced in sequences else 0)) > limits.MAX_BAD_WORD_TOKENS:
            raise RequestError(
                f"{field} must have at most {limits.MAX_BAD_WORD_TOKENS} tokens, not {longest}", field=field
            )
    # the model cannot produce ids beyond its vocabulary, which some tokenizers have
    possible = tuple(sequence for sequence in sequences if max(sequence) < vocab_size)
    _check_table(possible)
    return possible


def _check_table(sequences: Sequence[tuple[int, ...]]) -> None:
    if len(sequences) > limits.MAX_BAD_WORDS:
        raise RequestError(
            f"bad_words must have at most {limits.MAX_BAD_WORDS} spellings; with and without a space in front these "
            f"words have {len(sequences)}",
            field="bad_words",
        )
    if (entries := sum(len(sequence) + 1 for sequence in sequences)) > limits.MAX_BAD_WORDS_ENTRIES:
        raise RequestError(
            f"bad_words must have at most {limits.MAX_BAD_WORDS_ENTRIES} tokens with one more for each spelling; "
            f"these have {entries}",
            field="bad_words",
        )
