"""What the grammar process does for a `Pipeline`: masks for constrained requests, some steps late."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from albireo.coordinator.request import Request
from albireo.shm import segment
from albireo.shm.grammar_masks import GrammarMasks, mask_tag


def mask_of(position: int, vocab_size: int) -> NDArray[np.bool_]:
    """A third of the vocabulary, another one at each position."""
    mask: NDArray[np.bool_] = np.arange(vocab_size) % 3 == position % 3
    return mask


class PipelineMasks:
    """`lateness`: steps that are confirmed between a token and the next one's mask. Not for preempted requests."""

    def __init__(self, num_slots: int, vocab_size: int, lateness: int) -> None:
        geometry = GrammarMasks(num_slots, vocab_size)
        self.fd = segment.create("grammar", geometry.size)
        geometry.initialise(self.fd)
        self._table = geometry.attach(self.fd)
        self._vocab_size = vocab_size
        self._lateness = lateness
        self._places: dict[Request, tuple[int, int]] = {}
        """Slot and generation."""
        self._positions: dict[Request, int] = {}
        """Of the next token."""
        self._due: list[tuple[int, Request]] = []
        """Requests whose mask is written once the step is confirmed."""

    def planned(self, step: int, changes: Iterable[tuple[Request, int, int]]) -> None:
        """Requests that step `step` admits: no step before it may still read the slot's place."""
        for request, slot, generation in changes:
            assert slot >= 0, "preempted"
            self._places[request], self._positions[request] = (slot, generation), request.tokens.size
            self._due.append((step - 1 + self._lateness, request))

    def confirmed(self, step: int, tokens: Iterable[tuple[Request, int]]) -> None:
        for request, token in tokens:
            assert mask_of(self._positions[request], self._vocab_size)[token]
            self._positions[request] += 1
            self._due.append((step + self._lateness, request))
        self.publish(step)

    def publish(self, step: int) -> None:
        """What is due when `step` is confirmed."""
        for _, request in (due := [each for each in self._due if each[0] <= step]):
            (slot, generation), position = self._places[request], self._positions[request]
            self._table.clear(slot)
            padding = np.zeros(-self._vocab_size % 32, np.bool_)
            bits = np.append(mask_of(position, self._vocab_size), padding)
            self._table.masks[slot] = np.packbits(bits, bitorder="little").view("<i4")
            self._table.publish(slot, mask_tag(generation, position))
        self._due = [each for each in self._due if each not in due]
