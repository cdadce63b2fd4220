"""The matchers of running requests, and where their masks belong."""

from collections.abc import Iterable, Sequence
from typing import Final

import llguidance
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from albireo.grammar.compiler import one_line
from albireo.shm.grammar_masks import MaskTable, mask_tag

MAX_SERIAL_MASKS: Final = 16
"""A mask takes 3 to 30 microseconds: for a few, threads are woken for nothing, and take cores from the model."""


class Awaits:
    """Looks for a text in the output: a token of its own, or spelled out by several."""

    def __init__(self, text: str, tokenizer: llguidance.LLTokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = text.encode()
        ids = tokenizer.tokenize_str(text, parse_special=True)
        self._token = ids[0] if len(ids) == 1 else -1
        self._tail = b""

    def rest_after(self, token: int) -> list[int] | None:
        """The output goes on with `token`: None if the text has not come yet, else what that token holds behind it,
        as tokens; blanks are nothing."""
        if token == self._token:
            return []
        self._tail += self._tokenizer.decode_bytes([token])
        _, found, rest = self._tail.partition(self._text)
        self._tail = self._tail[-len(self._text) :]
        if not found:
            return None
        return self._tokenizer.tokenize_bytes(rest) if rest.strip() else []


class Opening:
    """A text with which the output may begin, instead of what the grammar takes: a token of its own, or spelled out by
    several."""

    def __init__(self, text: str, tokenizer: llguidance.LLTokenizer) -> None:
        self._rest: list[int] = tokenizer.tokenize_str(text, parse_special=True)
        self._has_begun = False

    def allow(self, mask: npt.NDArray[np.int32]) -> None:
        """Adds its next token to the grammar's mask of what may come; once it has begun, nothing else may."""
        if self._has_begun:
            mask[:] = 0
        token = self._rest[0]
        mask.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)

    def takes(self, token: int, matcher: llguidance.LLMatcher) -> bool:
        """Whether the output's next token is of this text. One that could begin either is the grammar's, unless it is
        the whole text."""
        if token != self._rest[0]:
            return False
        if not self._has_begun and len(self._rest) > 1 and matcher.validate_tokens([token]):
            return False
        self._has_begun = True
        del self._rest[0]
        return True

    @property
    def has_come(self) -> bool:
        """All of it."""
        return not self._rest


class Bound(Struct):
    """A request's grammar in mid-output."""

    matcher: llguidance.LLMatcher
    opening: Opening | None = None
    """Until it is clear whether the output begins with it."""
    awaits: Awaits | None = None
    """What must have come before it begins."""
    slot: int = -1
    """-1: it has none."""
    generation: int = 0
    position: int = 0
    """Of the token that its next mask is for."""

    @property
    def is_under_way(self) -> bool:
        """Whether its matcher has a say in what comes next."""
        return self.awaits is None or self.opening is not None


class Matchers:
    """By handle. The masks that it writes are those of `shm.grammar_masks`, whose only writer it is."""

    def __init__(self, table: MaskTable, tokenizer: llguidance.LLTokenizer, num_threads: int) -> None:
        self._table = table
        self._tokenizer = tokenizer
        self._bound: dict[int, Bound] = {}
        num_slots, num_words = table.masks.shape
        self._scratch = np.zeros((num_slots, num_words), np.int32)
        self._executor = llguidance.LLExecutor(num_threads)
        self._anything = np.full(num_words, -1, np.int32)
        """But the end: the mask of an output whose grammar has not begun."""
        for token in tokenizer.eos_tokens:
            self._anything.view(np.uint32)[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)

    def __len__(self) -> int:
        return len(self._bound)

    def add(self, handle: int, matcher: llguidance.LLMatcher, after: str, opened_by: str) -> None:
        """`after`, `opened_by`: as of `messages.Grammar`."""
        bound = self._bound[handle] = Bound(matcher)
        if after:
            bound.awaits = Awaits(after, self._tokenizer)
        if opened_by:
            bound.opening = Opening(opened_by, self._tokenizer)

    def forget(self, handles: Iterable[int]) -> None:
        for handle in handles:
            bound = self._bound.pop(handle, None)
            if bound is not None and bound.slot >= 0:
                self._table.clear(bound.slot)

    def bind(self, handle: int, slot: int, generation: int, position: int) -> dict[int, str]:
        """As `messages.Bind`; returns what broke, as `advance`."""
        bound = self._bound.get(handle)
        if bound is None:  # it was forgotten while this was on its way
            return {}
        if bound.slot >= 0:
            self._table.clear(bound.slot)
        bound.slot, bound.generation, bound.position = slot, generation, position
        return self._write([handle])

    def advance(self, handles: Sequence[int], token_ids: Sequence[int]) -> dict[int, str]:
        """Takes confirmed tokens and writes the masks for the next; returns those that cannot go on, and why."""
        broken: dict[int, str] = {}
        moved = []
        for handle, token in zip(handles, token_ids, strict=True):
            bound = self._bound.get(handle)
            if bound is None:
                continue
            bound.position += 1
            if all(bound.matcher.consume_token(each) for each in _of_grammar(bound, token)):
                moved.append(handle)
            else:
                broken[handle] = one_line(bound.matcher.get_error())
        return broken | self._write(moved)

    def _write(self, handles: Sequence[int]) -> dict[int, str]:
        """The masks of those that have a slot. The library writes rows without a gap, the table's begin on cache
        lines: they go by way of the scratch."""
        bound = [self._bound[handle] for handle in handles]
        placed = [(handle, each) for handle, each in zip(handles, bound, strict=True) if each.slot >= 0]
        for _, each in placed:
            if not each.is_under_way:
                self._publish(each, self._anything)
        placed = [(handle, each) for handle, each in placed if each.is_under_way]
        if not placed:
            return {}
        scratch = self._scratch
        if len(placed) <= MAX_SERIAL_MASKS:
            for row, (_, each) in enumerate(placed):
                each.matcher.unsafe_compute_mask_ptr(scratch[row].ctypes.data, scratch.strides[0])
        else:
            rows = [(each.matcher, row) for row, (_, each) in enumerate(placed)]
            self._executor.unsafe_compute_mask_ptr(rows, scratch.ctypes.data, scratch.strides[0], len(scratch))
        broken = {}
        for row, (handle, each) in enumerate(placed):
            if each.matcher.get_error() or not scratch[row].any():
                broken[handle] = one_line(each.matcher.get_error() or "no token can follow")
                continue
            if each.opening is not None:
                each.opening.allow(scratch[row])
            self._publish(each, scratch[row])
        return broken

    def _publish(self, bound: Bound, mask: npt.NDArray[np.int32]) -> None:
        self._table.clear(bound.slot)
        self._table.masks[bound.slot] = mask
        self._table.publish(bound.slot, mask_tag(bound.generation, bound.position))


def _of_grammar(bound: Bound, token: int) -> Sequence[int]:
    """The output goes on with `token`: what of it is for the matcher."""
    if bound.opening is not None:
        if bound.opening.takes(token, bound.matcher):
            if bound.opening.has_come:
                bound.opening = None
            return ()
        bound.opening = bound.awaits = None
    if bound.awaits is None:
        return (token,)
    rest = bound.awaits.rest_after(token)
    if rest is None:
        return ()
    bound.awaits = None
    return rest
