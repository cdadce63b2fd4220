"""Which rows of a step may sample: those of requests without a grammar, and those whose grammar's mask is there.

A row whose mask is late samples nothing in this step and is computed again in the next; nobody waits for it. Only a
step in which no row at all could sample waits a little, since going on would compute the same once more.
"""

import time
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from albireo.gpu_worker.collectives.interface import Collectives
from albireo.gpu_worker.sampling.interface import Int32s, Int64s
from albireo.shm.fence import fence
from albireo.shm.grammar_masks import MaskTable

Bools = npt.NDArray[np.bool_]

LOOK_S: Final = 50e-6
MAX_LOOKS: Final = 40
"""So a step that has no other row waits for at most some 4 ms, sleeping; timers are late by half of it."""


class GrammarGate:
    """One rank's view of the masks; all ranks come to the same answer."""

    def __init__(
        self,
        table: MaskTable,
        has_grammar: Bools,
        generation: npt.NDArray[np.uint32],
        collectives: Collectives,
        beat: Callable[[], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`has_grammar`, `generation`: by slot, of the device's state. `beat` renews the rank's heartbeat."""
        self._table = table
        self._has_grammar = has_grammar
        self._generation = generation
        self._collectives = collectives
        self._beat = beat
        self._sleep = sleep

    def open_rows(self, slots: Int32s, positions: Int64s) -> Bools | None:
        """bool [n_rows]: which of the rows may sample the tokens at `positions`; None where all may."""
        constrained = self._has_grammar.take(slots)
        if not constrained.any():
            return None
        wanted = self._generation.take(slots).astype(np.uint64) << np.uint64(32) | positions.astype(np.uint64)
        is_open = self._look(constrained, slots, wanted)
        for _ in range(MAX_LOOKS):
            if is_open.any():
                break
            self._beat()
            self._sleep(LOOK_S)
            is_open = self._look(constrained, slots, wanted)
        fence()  # the tags before the masks
        if self._collectives.size > 1:
            views = self._collectives.all_gather(torch.from_numpy(is_open.view(np.uint8)))
            is_open = views.amin(0).numpy().view(np.bool_)
        return None if is_open.all() else is_open

    def _look(self, constrained: Bools, slots: Int32s, wanted: npt.NDArray[np.uint64]) -> Bools:
        is_open: Bools = ~constrained | (self._table.tags.take(slots) == wanted)
        return is_open
