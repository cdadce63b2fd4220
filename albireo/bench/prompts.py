"""Random prompts of an exact length in tokens, the same whether they are sent as text or as token ids.

Prompts are words that are one token each after a space, found by trying entries of the vocabulary: such text encodes
to the same number of tokens wherever it is cut, so that a server which tokenises it counts what we counted.
"""

import random
from pathlib import Path

from msgspec import Struct
from tokenizers import Tokenizer

_WORDS_WANTED = 1024
"""Enough that two prompts never share a block of KV cache by chance."""
_WORDS_NEEDED = 16
_ATTEMPTS = 100


class PromptError(ValueError):
    """No tokenizer, or one that no prompt of this length can be made with; the text is one line."""


class Prompt(Struct, frozen=True):
    text: str
    ids: list[int]
    """What the tokenizer makes of `text`, special tokens included."""
    output_len: int | None = None
    """Tokens to generate, where prompts differ in it."""


def load_tokenizer(name: str) -> Tokenizer:
    """From a checkpoint folder, a tokenizer.json, or the hub (the only case that touches the network)."""
    path = Path(name).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        return Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(name)
    except Exception as error:  # tokenizers raises plain Exception
        reason = str(error).partition("\n")[0]
        raise PromptError(
            f"no tokenizer at {name!r} ({reason}); name a folder with tokenizer.json by --tokenizer"
        ) from None


class PromptMaker:
    """Makes prompts with one tokenizer; the same seed makes the same prompts."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._random = random.Random(seed)
        self._words = self._find_words()

    def make(self, count: int, input_len: int, prefix_len: int) -> list[Prompt]:
        """`count` prompts of `prefix_len` shared and then `input_len` own tokens. Raises PromptError."""
        prefix = self._extend("", prefix_len) if prefix_len else ""
        texts = [self._extend(prefix, prefix_len + input_len) for _ in range(count)]
        return [Prompt(text, self._encode(text)) for text in texts]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def _find_words(self) -> list[str]:
        """Words w for which `w w` is one token more than `w`, in the order that the seed gives."""
        ids = list(range(self._tokenizer.get_vocab_size()))
        self._random.shuffle(ids)
        words: dict[str, None] = {}
        for token in ids:
            word = self._tokenizer.decode([token]).strip()
            if word.isascii() and word.isalpha() and word not in words:
                alone, twice = self._encode(word), self._encode(f"{word} {word}")
                if len(twice) == len(alone) + 1:
                    words[word] = None
            if len(words) == _WORDS_WANTED:
                break
        if len(words) < _WORDS_NEEDED:
            raise PromptError("the tokenizer has too few words of one token to make prompts of an exact length")
        return list(words)

    def _extend(self, prefix: str, num_tokens: int) -> str:
        """`prefix` and random words after it, `num_tokens` in all."""
        fixed = [prefix] if prefix else []
        for _ in range(_ATTEMPTS):
            words = self._random.choices(self._words, k=num_tokens - (len(self._encode(prefix)) if prefix else 0))
            # A text's first word and the special tokens around it may take tokens of their own: fewer words then,
            # and one correction settles it, since every further word is one token.
            surplus = len(self._encode(" ".join(fixed + words))) - num_tokens
            text = " ".join(fixed + words[: max(len(words) - surplus, 0)])
            if len(self._encode(text)) == num_tokens:
                return text
        raise PromptError(f"found no prompt of exactly {num_tokens} tokens with this tokenizer")
