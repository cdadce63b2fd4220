"""Token ids -> text, one token at a time, never half a character; cost per token independent of what came before.

A token's bytes are looked up, and UTF-8 is decoded as it comes: what might still become a character is held back. That
gives the same text as decoding all tokens at once with `tokenizers` (tests hold it to that), for the two kinds of
vocabulary that the served architectures use:

byte-level    (GPT-2, Llama 3, Qwen) every character of a token stands for a byte. Bytes that are no UTF-8 become
              U+FFFD as Rust and Python both do it, one per maximal invalid part.
SentencePiece (Llama 2, Mistral, Gemma) tokens are text with "▁" for a space, and <0xE2> for a byte. `tokenizers`
              decodes a run of byte tokens only if all of it is UTF-8, and else makes each of its bytes a U+FFFD. We do
              the same, except that characters which were complete before the run went wrong have been shown already.

`tokenizers` drops the space in front of the first word of a text. Output continues a prompt, so it keeps it: the
prompt's text followed by the output's is the text of all the tokens.

Measured against tokenizers.decoders.DecodeStream, which decodes a window of tokens again for each one: 0.1 µs to 0.6.
"""

import json
import re
from abc import ABC, abstractmethod
from codecs import utf_8_decode
from collections.abc import Callable
from functools import partial
from typing import Any

import tokenizers

from albireo.errors import StartupError

NOTHING_SHOWN: frozenset[str] = frozenset()
REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer(ABC):
    """One sequence's output text. Made by `DetokenizerFactory`; used by the event loop's thread."""

    __slots__ = ("_pending", "_tokens")

    def __init__(self, tokens: "TokenTexts") -> None:
        self._tokens = tokens
        self._pending = b""
        """Bytes that may become a character yet: fewer than four."""

    @property
    def inside_character(self) -> bool:
        """Bytes of one that is not whole are held back."""
        return bool(self._pending)

    @abstractmethod
    def feed(self, token_id: int) -> str:
        """The text that this token completes, often empty."""

    @abstractmethod
    def flush(self) -> str:
        """The end of the text: what is held back, as U+FFFD."""


class ByteLevelDetokenizer(Detokenizer):
    """See the module's docstring."""

    __slots__ = ()

    def feed(self, token_id: int) -> str:
        token = self._tokens[token_id]
        if isinstance(token, str):
            if not self._pending:
                return token
            token = token.encode()
        text, used = utf_8_decode(self._pending + token, "replace", False)
        self._pending = (self._pending + token)[used:]
        return text

    def flush(self) -> str:
        text = self._pending.decode(errors="replace")
        self._pending = b""
        return text


class ByteFallbackDetokenizer(Detokenizer):
    """See the module's docstring."""

    __slots__ = ("_broken",)

    def __init__(self, tokens: "TokenTexts") -> None:
        super().__init__(tokens)
        self._broken = False
        """This run of byte tokens is no UTF-8."""

    def feed(self, token_id: int) -> str:
        token = self._tokens[token_id]
        if isinstance(token, str):
            return self.flush() + token if token else ""
        if self._broken:
            return REPLACEMENT
        pending = self._pending + token
        try:
            text, used = utf_8_decode(pending, "strict", False)
        except UnicodeDecodeError as error:
            self._broken, self._pending = True, b""
            return pending[: error.start].decode() + REPLACEMENT * (len(pending) - error.start)
        self._pending = pending[used:]
        return text

    def flush(self) -> str:
        held = len(self._pending)
        self._broken, self._pending = False, b""
        return REPLACEMENT * held


class TokenTexts(dict[int, str | bytes]):
    """Text of each token that is a text by itself, bytes of each other; filled as tokens are met. Shared."""

    def __init__(
        self, backend: tokenizers.Tokenizer, decode: Callable[[str], str | bytes], skipped: frozenset[int]
    ) -> None:
        super().__init__()
        self._backend, self._decode, self._skipped = backend, decode, skipped

    def __missing__(self, token_id: int) -> str | bytes:
        # ids above the vocabulary exist where a checkpoint pads its embedding; they are no text
        token = None if token_id in self._skipped else self._backend.id_to_token(token_id)
        text = self[token_id] = "" if token is None else self._decode(token)
        return text


class DetokenizerFactory:
    """Makes the detokenizers of one model's sequences."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Raises StartupError for a vocabulary of another kind."""
        kind = _kind(backend)
        self._type: type[Detokenizer] = ByteLevelDetokenizer if kind == "ByteLevel" else ByteFallbackDetokenizer
        decode = _byte_level_decoder() if kind == "ByteLevel" else _sentencepiece_text
        added = backend.get_added_tokens_decoder()
        self._special = {token.content: id_ for id_, token in added.items() if token.special}
        self._make_texts = partial(TokenTexts, backend, decode)
        self._all = self._make_texts(frozenset())
        self._visible: dict[frozenset[str], TokenTexts] = {}
        """By the special tokens that are shown."""

    def __call__(self, skip_special_tokens: bool, shown: frozenset[str] = NOTHING_SHOWN) -> Detokenizer:
        """`shown`: special tokens that are text all the same."""
        return self._type(self._texts_with(shown) if skip_special_tokens else self._all)

    def _texts_with(self, shown: frozenset[str]) -> TokenTexts:
        texts = self._visible.get(shown)
        if texts is None:
            skipped = frozenset(id_ for content, id_ in self._special.items() if content not in shown)
            texts = self._visible[shown] = self._make_texts(skipped)
        return texts

    def piece(self, token_id: int) -> str | bytes:
        """One token by itself, special or not: its text, or its bytes where these are no text yet."""
        return self._all[token_id]


def _kind(backend: tokenizers.Tokenizer) -> str:
    """`ByteLevel` or `SentencePiece`, from the decoder in tokenizer.json."""
    state = b'{"type": "none"}' if backend.decoder is None else backend.decoder.__getstate__()
    decoder: dict[str, Any] = json.loads(state)
    steps: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    names = {step["type"] for step in steps}
    if names <= {"ByteLevel", "Fuse"} and "ByteLevel" in names:
        return "ByteLevel"
    if names <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} and any(map(_is_space_mark, steps)):
        return "SentencePiece"
    raise StartupError(f"the tokenizer's decoder {sorted(names)} is not supported: only byte-level and SentencePiece")


def _is_space_mark(step: dict[str, Any]) -> bool:
    """The step that turns "▁" into a space."""
    if step["type"] == "Replace":
        return bool(step["pattern"] == {"String": "▁"} and step["content"] == " ")
    return bool(step["type"] == "Metaspace" and step["replacement"] == "▁")


def _byte_level_decoder() -> Callable[[str], str | bytes]:
    """GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes for U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    to_byte = {byte: chr(byte) for byte in printable} | {256 + i: chr(byte) for i, byte in enumerate(others)}

    def decode(token: str) -> str | bytes:
        if all(ord(character) in to_byte for character in token):
            return _text_if_whole(token.translate(to_byte).encode("latin-1"))
        return token  # an added token, written as it is

    return decode


def _text_if_whole(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _sentencepiece_text(token: str) -> str | bytes:
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match.group(1), 16)])
    return token.replace("▁", " ")
