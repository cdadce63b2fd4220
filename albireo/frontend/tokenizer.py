"""Text -> token ids. `tokenizers` does the work; this decides which special tokens may come out of it."""

import json
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers

from albireo.errors import RequestError, StartupError
from albireo.frontend.control_tokens import ControlTokens, Span, has_cut_inside, take_out

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ANCHOR = "\n"


class Tokenizer:
    """A checkpoint's tokenizer. Thread-safe: it is not changed after the start, and encoding releases the GIL."""

    def __init__(self, folder: Path, eos_token_ids: Iterable[int], template_text: str, max_tokens: int) -> None:
        """`template_text`: the chat template's literals. `max_tokens`: no prompt may be longer.

        Raises StartupError when the folder holds no usable tokenizer."""
        self.backend = load_backend(folder)
        self.control = ControlTokens(self.backend, eos_token_ids, template_text)
        config = load_tokenizer_config(folder)
        bos = special_tokens(config).get("bos_token")
        self._bos_id = self.backend.token_to_id(bos) if config.get("add_bos_token") and bos else None
        self._max_tokens = max_tokens
        self._max_chars = max_tokens * _longest_token_chars(self.backend)

    def encode_prompt(self, text: str, field: str, add_special_tokens: bool = True) -> list[int]:
        """A raw prompt, with what the tokenizer's post-processor adds (BOS) unless that is unwanted. What looks like a
        control token in it is text: clients that want control tokens send token ids."""
        self._check_length(text, field)
        encoding = self.backend.encode(text, add_special_tokens=add_special_tokens)
        ids = self._with_typed_as_text(text, encoding, field, is_typed=lambda span: span[0] < span[1])
        if add_special_tokens and self._bos_id is not None and ids[:1] != [self._bos_id]:
            ids = [self._bos_id, *ids]
        return ids

    def encode_chat(self, rendered: str, mark: str, field: str) -> list[int]:
        """A rendered chat template with `mark` at the cuts (see control_tokens). Adds no special token: the template
        writes them all."""
        text, cuts = take_out(rendered, mark)
        self._check_length(text, field)
        encoding = self.backend.encode(text, add_special_tokens=False)
        if not cuts:
            return list(encoding.ids)
        return self._with_typed_as_text(text, encoding, field, is_typed=lambda span: has_cut_inside(cuts, span))

    def _with_typed_as_text(
        self, text: str, encoding: tokenizers.Encoding, field: str, is_typed: Callable[[Span], bool]
    ) -> list[int]:
        """The encoding's ids, where control tokens that a user typed, and the text up to the next control token, are
        encoded again as the plain text that they are."""
        ids: list[int] = encoding.ids
        if self.control.ids.isdisjoint(ids):
            return ids
        offsets = encoding.offsets
        control = [index for index, id_ in enumerate(ids) if id_ in self.control.ids]
        result = ids[: control[0]]
        for index, following in pairwise([*control, len(ids)]):
            if not is_typed(offsets[index]):
                result += ids[index:following]
                continue
            # what a post-processor adds has the span (0, 0)
            end = offsets[following][0] if following < len(ids) and any(offsets[following]) else len(text)
            result += self._plain(text[offsets[index][0] : end])
            if len(result) > self._max_tokens:  # each costs some 100 µs, so do not go on for nothing
                raise _too_long(field, f"more than {self._max_tokens} tokens")
        return result

    def _plain(self, text: str) -> list[int]:
        """The text cut after its first character, so that no control token is whole; the rest may begin another."""
        head, tail = self.encode_inner(text[:1]), self.encode_inner(text[1:])
        if not self.control.ids.isdisjoint(head):
            raise RequestError(f"the text contains {text[:1]!r}, which is a control token of this model")
        return head + (tail if self.control.ids.isdisjoint(tail) else self._plain(text[1:]))

    def encode_inner(self, text: str) -> list[int]:
        """Ids of a text as it would be encoded behind other text: SentencePiece models put a space before a first
        word, and a line end in front of it takes that upon itself."""
        anchor = self.backend.encode(_ANCHOR, add_special_tokens=False).ids
        ids: list[int] = self.backend.encode(_ANCHOR + text, add_special_tokens=False).ids
        if ids[: len(anchor)] == anchor:
            return ids[len(anchor) :]
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def _check_length(self, text: str, field: str) -> None:
        """Refuses what is certainly too long without encoding it: 8 MB of text take seconds."""
        if len(text) > self._max_chars:
            raise _too_long(field, f"{len(text)} characters")


def _too_long(field: str, size: str) -> RequestError:
    message = f"{field} has {size}, more than the context can hold"
    return RequestError(message, field=field, code="context_length_exceeded")


def load_backend(folder: Path) -> tokenizers.Tokenizer:
    """tokenizer.json; without the truncation and padding that some checkpoints were saved with."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise StartupError(f"{folder} has no tokenizer.json; name a folder that has one with --tokenizer")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise StartupError(f"{path} is not a usable tokenizer: {str(error).splitlines()[0]}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def load_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, or nothing where there is none."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise StartupError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise StartupError(f"{path} must hold a JSON object")
    return config


def special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token`... of a tokenizer config, whether strings or objects with their flags."""
    named = {name: config.get(name) for name in SPECIAL_TOKEN_NAMES}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _longest_token_chars(backend: tokenizers.Tokenizer) -> int:
    """No text of n tokens is longer than n times this. A normaliser may shorten text (NFC composes up to four
    characters into one), so it is given room."""
    longest = max(map(len, backend.get_vocab()), default=1)
    return longest if backend.normalizer is None else 4 * longest
