"""Text that users type never becomes a control token: `<|im_end|>` in a message is ten characters, not an end of turn.

A control token is a special token of the tokenizer, an end-of-sequence token, or an added token that the chat template
writes by itself (`<think>` and the like).

How: before a template is rendered, every user string gets *cuts*: a character that occurs nowhere else in the request,
put inside each occurrence of a control token, and at an edge of the string where a control token could be completed by
what the template writes next to it. After rendering, the cuts are taken out again and their positions kept. The whole
text is then encoded at once, special tokens included, and a control token whose span has a cut inside is the user's:
it is encoded again as plain text. So text without control tokens is encoded exactly as `apply_chat_template` does it,
and the template may split, trim and reorder the messages as it likes.

Two limits. A template that deletes text from *within* a message could join two halves; none that we know does.
In an assistant's message, the added tokens that are not special (`<think>`) stay what they are: the model wrote them,
and templates look for them to strip old reasoning.

Advisory: CVE-2026-44222.
"""

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

import tokenizers

from albireo.errors import RequestError

Span = tuple[int, int]
"""Start and end in characters."""

_NONCHARACTERS = range(0xFDD0, 0xFDF0)


class ControlTokens:
    """The control tokens of one model and where they occur in user text."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, eos_token_ids: Iterable[int], template_text: str) -> None:
        """`template_text`: the literal text of the chat template."""
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        special = {token.content: id_ for id_, token in added.items() if token.special}
        special.pop(getattr(tokenizer.model, "unk_token", None) or "", None)  # ordinary text may encode to it
        special.update({text: id_ for id_ in eos_token_ids if (text := tokenizer.id_to_token(id_)) is not None})
        written = {
            token.content: id_
            for id_, token in added.items()
            # runs of spaces are added tokens of some vocabularies, and ordinary text
            if not token.special and token.content.strip() and token.content in template_text
        }
        self.ids = frozenset((special | written).values())
        self._patterns = {True: _Patterns(special), False: _Patterns(special | written)}
        # matched after normalisation: what the user typed may look different
        self._encode_to_find = tokenizer.normalizer is not None and any(
            token.normalized for id_, token in added.items() if id_ in self.ids
        )

    def cut(self, text: str, mark: str, by_model: bool) -> str:
        """`text` with `mark` at each cut. `by_model`: an assistant's message, where only special tokens are cut."""
        patterns = self._patterns[by_model]
        cuts = patterns.cuts(text)
        if self._encode_to_find:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            spans = [span for id_, span in zip(encoding.ids, encoding.offsets, strict=True) if id_ in self.ids]
            cuts.update(start + 1 for start, end in spans if end - start > 1)
        if not cuts:
            return text
        edges = [0, *sorted(cuts), len(text)]
        return mark.join(text[start:end] for start, end in pairwise(edges))


class _Patterns:
    """A set of strings to find in a text, whole or begun at its edges."""

    def __init__(self, tokens: Collection[str]) -> None:
        self._tokens = frozenset(tokens)
        self._lengths = sorted(set(map(len, tokens)))
        # some vocabularies have a thousand special tokens, and few ways to begin one
        self._begin = re.compile("|".join(sorted({re.escape(token[:2]) for token in tokens})) or "(?!)")
        self._beginnings = frozenset(token[:length] for token in tokens for length in range(1, len(token)))
        self._endings = frozenset(token[length:] for token in tokens for length in range(1, len(token)))

    def cuts(self, text: str) -> set[int]:
        """Positions such that no token lies in `text` without one of them inside, and none is completed by text put
        in front of it or behind it without one of them at the seam."""
        cuts = set()
        match = self._begin.search(text)
        while match is not None:
            start = match.start()
            if any(text[start : start + length] in self._tokens for length in self._lengths):
                cuts.add(start + 1)
            match = self._begin.search(text, start + 1)  # occurrences may overlap
        # next to white space, so that a template can still trim it
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        lengths = range(1, min(max(self._lengths, default=1), end - start + 1))
        if any(text[start : start + length] in self._endings for length in lengths):
            cuts.add(start)
        if any(text[end - length : end] in self._beginnings for length in lengths):
            cuts.add(end)
        return cuts


def unused_characters(texts: Sequence[str], count: int) -> list[str]:
    """`count` characters that occur in none of `texts`, from those that Unicode sets aside for a program's own use."""
    found = [mark for mark in map(chr, _NONCHARACTERS) if not any(mark in text for text in texts)]
    if len(found) < count:
        raise RequestError("the request's text uses too many of the noncharacters U+FDD0 to U+FDEF")
    return found[:count]


def take_out(text: str, mark: str) -> tuple[str, list[int]]:
    """`text` without the marks, and where they were, in its characters."""
    pieces = text.split(mark)
    positions, position = [], 0
    for piece in pieces[:-1]:
        position += len(piece)
        positions.append(position)
    return "".join(pieces), positions


def has_cut_inside(cuts: Sequence[int], span: Span) -> bool:
    """True where one of the sorted `cuts` lies strictly inside the span."""
    index = bisect_right(cuts, span[0])
    return index < len(cuts) and cuts[index] < span[1]
