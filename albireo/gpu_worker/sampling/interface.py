"""How a worker samples a step, whatever the number of ranks and the mode."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AdjustedRows:
    """Rows of a batch whose logits are not the model's own: step A of `params`, done. The others are used as they
    are, in place: who asks for nothing special pays for nothing special."""

    index: Int32s
    """[n_rows]: the row of `values` that replaces this one, -1 for a row that is left as it is."""
    values: npt.NDArray[np.float32]
    """[n_adjusted, width]"""


@dataclass(frozen=True, slots=True)
class SampledRows:
    """A step's outcome, the same on every rank."""

    tokens: Int32s
    """[n_rows]"""
    logprobs: npt.NDArray[Any]
    """`shm.layout.LOGPROB` [n_asked]: one for each row whose slot has num_logprobs >= 0, in row order. Everything is
    filled in but slot, generation and position."""


class StepSampler(Protocol):
    """Chooses a token for each row of a step on t ranks, each of which calls this with its own share of the logits.

    Owned by the worker's main thread. `logits` is float32 or bfloat16 `[n_rows, vocab.width]`, the last dimension
    contiguous: the rank's share of the vocabulary, of which the first `vocab.size` columns are real
    (`checkpoint.shard.ModelShard.vocab`).
    """

    def sample(self, logits: Tensor, slots: Int32s, positions: Int64s, sampling_slice: int) -> SampledRows:
        """slots int32 [n_rows]; positions int64 [n_rows]: of the token that is sampled; `sampling_slice` as in
        `layout.PLAN_HEADER`. The logits are left as they are."""

    def score(self, logits: Tensor, targets: Int32s, num_top: Int32s) -> npt.NDArray[Any]:
        """`layout.LOGPROB` [n_rows] of given tokens (prompt logprobs), filled like `SampledRows.logprobs`.
        targets, num_top  int32 [n_rows]"""
