"""How t ranks sample a step on GPUs: `sampling.modes`, as far as captured steps can have it: shapes that depend on the
number of rows alone.

gathered             every rank gets all logits and samples all rows
sequence-parallel    an all-to-all gives every rank whole rows, its slice of the batch; it samples those, and the tokens
                     are gathered. From "Scaling LLM Inference Beyond Amdahl's Limits", arXiv 2606.01927

The `local` mode of the CPU exchanges a number of messages that depends on what is drawn, which no captured step can.
"""

from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from albireo.config import SamplingMode
from albireo.gpu_worker.collectives.interface import Collectives
from albireo.gpu_worker.cuda.sampler import CudaSampler

Int32s = npt.NDArray[Any]


class StepSampler(Protocol):
    """`CudaSampler` for a rank's share `[n, vocab.width]` of the logits; all ranks call it alike and get the same."""

    def admit(self, entries: npt.NDArray[Any], extras: Int32s) -> None: ...

    def sample(self, logits: Tensor, slots: Tensor, alive: Tensor, positions: Tensor, tokens: Tensor) -> None: ...

    def observe(self, slots: Tensor, tokens: Tensor) -> None: ...

    def score(self, logits: Tensor, targets: Tensor, positions: Tensor, num_top: Tensor, out: Tensor) -> None: ...


def make_step_sampler(mode: SamplingMode, whole: CudaSampler, collectives: Collectives, vocab_size: int) -> StepSampler:
    """`whole`: this rank's sampler of whole rows."""
    if collectives.size == 1:
        return whole
    if mode == "gathered":
        return GatheredSampler(whole, collectives, vocab_size)
    return SequenceParallelSampler(whole, collectives, vocab_size)


class GatheredSampler:
    """Every rank samples all rows."""

    def __init__(self, whole: CudaSampler, collectives: Collectives, vocab_size: int) -> None:
        self.admit, self.observe = whole.admit, whole.observe
        self._whole = whole
        self._collectives = collectives
        self._vocab_size = vocab_size

    def sample(self, logits: Tensor, slots: Tensor, alive: Tensor, positions: Tensor, tokens: Tensor) -> None:
        asked = self._whole.masks.take(slots, alive, positions)
        if self._whole.masks.are_served:
            # a mask may have come between two ranks' looks: a row waits if it waits anywhere
            asked = self._collectives.all_gather(asked).amin(0)
        self._whole.draw(self._gather(logits), asked, alive, positions, tokens)

    def score(self, logits: Tensor, targets: Tensor, positions: Tensor, num_top: Tensor, out: Tensor) -> None:
        self._whole.score(self._gather(logits), targets, positions, num_top, out)

    def _gather(self, logits: Tensor) -> Tensor:
        """All ranks' columns, side by side: `[n, vocab_size]`; the last ranks' padding lies behind."""
        parts = self._collectives.all_gather(logits.contiguous())
        return parts.transpose(0, 1).reshape(len(logits), -1)[:, : self._vocab_size]


class SequenceParallelSampler(GatheredSampler):
    """Every rank samples its slice of the rows, and so decides alone which of them wait for a mask. Log-probabilities,
    which few ask for, are computed by all."""

    def sample(self, logits: Tensor, slots: Tensor, alive: Tensor, positions: Tensor, tokens: Tensor) -> None:
        size, rank = self._collectives.size, self._collectives.rank
        per_rank = -(-len(logits) // size)
        mine = slice(rank * per_rank, (rank + 1) * per_rank)
        received = self._collectives.all_to_all(_padded(logits, size * per_rank, 0).view(size, per_rank, -1))
        own = received.transpose(0, 1).reshape(per_rank, -1)[:, : self._vocab_size]
        own_slots, own_positions = (_padded(rows, size * per_rank, -1)[mine] for rows in (slots, positions))
        own_tokens = torch.empty_like(own_slots)
        self._whole.sample(own, own_slots, alive, own_positions, own_tokens)
        tokens.copy_(self._collectives.all_gather(own_tokens).view(-1)[: len(tokens)])


def _padded(rows: Tensor, count: int, value: int) -> Tensor:
    """`[n, ...]` -> `[count, ...]`, contiguous, `value` in rows that are new."""
    padded = rows.new_full((count, *rows.shape[1:]), value)
    padded[: len(rows)] = rows
    return padded
