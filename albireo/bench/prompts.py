"""Random prompts of an exact length in tokens, the same whether they are sent as text or as token ids.

Prompts are words that are one token each after a space, found by trying entries of the vocabulary: such text encodes
to the same number of tokens wherever it is cut, so that a server which tokenises it counts what we counted.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from tokenizers import Tokenizer

_WORDS_WANTED = 1024
"""Enough that two prompts never share a block of KV cache by chance."""
_WORDS_NEEDED = 16
_ATTEMPTS = 100
BLOCK_WORDS = 512
"""Of a block that prompts may share: what a hash id of the Mooncake traces stands for."""


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
        self._seed = seed
        self._words = self._find_words()
        self._blocks: dict[int, list[str]] = {}

    def make(self, count: int, input_len: int, prefix_len: int) -> list[Prompt]:
        """`count` prompts of `prefix_len` shared and then `input_len` own tokens. Raises PromptError."""
        prefix = self._extend("", prefix_len) if prefix_len else ""
        return [self.extend(prefix, prefix_len + input_len) for _ in range(count)]

    def extend(self, prefix: str, num_tokens: int) -> Prompt:
        """One of `num_tokens` that begins with the text `prefix`. Raises PromptError."""
        text = self._extend(prefix, num_tokens)
        return Prompt(text, self._encode(text))

    def of_blocks(self, blocks: Sequence[int], num_tokens: int) -> Prompt:
        """One of `num_tokens`, of which each BLOCK_WORDS are the same wherever their number stands in `blocks`, so that
        prompts whose `blocks` begin alike do too. What these do not cover is random. Raises PromptError."""
        words = [word for block in blocks[: -(-num_tokens // BLOCK_WORDS)] for word in self._block(block)]
        words += self._random.choices(self._words, k=max(0, num_tokens - len(words)))
        # what the first word and special tokens take beside: a word less for each at the end
        surplus = len(self._encode(" ".join(words[:num_tokens]))) - num_tokens
        if surplus >= num_tokens:  # too short for its first word: others may do
            return self.extend("", num_tokens)
        text = " ".join(words[: num_tokens - surplus])
        return Prompt(text, self._encode(text))

    def _block(self, number: int) -> list[str]:
        if number not in self._blocks:
            draw = random.Random(f"{self._seed} {number}")
            self._blocks[number] = draw.choices(self._words, k=BLOCK_WORDS)
        return self._blocks[number]

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
