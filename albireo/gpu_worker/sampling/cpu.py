"""The sampler of whole rows that the CPU worker runs: `row_kernel` over the rows of a batch."""

from typing import Final

import numpy as np
import torch

from albireo.gpu_worker.sampling import arguments
from albireo.gpu_worker.sampling.arguments import Arguments, kernel_element
from albireo.gpu_worker.sampling.interface import AdjustedRows, Int32s, Int64s
from albireo.gpu_worker.sampling.kernels import BLOCK, MASS_BITS
from albireo.gpu_worker.sampling.row_kernel import row_kernel
from albireo.gpu_worker.sampling.table import SamplingTable

MAX_VOCAB: Final = 2 ** (63 - MASS_BITS) - 1
"""The masses' sum must fit a signed 64-bit integer."""


class CpuSampler:
    """A `params.Sampler` for CPU tensors. Owns its working memory, so one thread at a time may call it."""

    def __init__(self, vocab: int) -> None:
        """`vocab`: width of the logits, at most `MAX_VOCAB`."""
        if not 1 <= vocab <= MAX_VOCAB:
            raise ValueError(f"vocabulary of {vocab} tokens: the sampler takes 1 to {MAX_VOCAB}")
        self._vocab = vocab
        self._max_threads = torch.get_num_threads()
        num_blocks = -(-vocab // BLOCK)
        self._arguments = Arguments()
        self._arguments.set_scratch(self._max_threads, num_blocks * BLOCK)
        self._arguments.own(maxima=np.empty((self._max_threads, num_blocks), np.float32))
        self._arguments.set(size=vocab, num_blocks=num_blocks)

    def sample(
        self,
        logits: torch.Tensor,
        slots: torch.Tensor,
        positions: torch.Tensor,
        table: SamplingTable,
        out: torch.Tensor,
        adjusted: AdjustedRows | None = None,
    ) -> None:
        self.sample_rows(logits, slots.numpy(), positions.numpy(), table, out.numpy(), adjusted)

    def sample_rows(
        self,
        logits: torch.Tensor,
        slots: Int32s,
        positions: Int64s,
        table: SamplingTable,
        out: Int32s,
        adjusted: AdjustedRows | None = None,
    ) -> None:
        """`sample` for who has numpy arrays."""
        n_rows, vocab = logits.shape
        if vocab != self._vocab or logits.stride(1) != 1:
            raise ValueError(f"logits {tuple(logits.shape)}, strides {logits.stride()}: expected rows of {self._vocab}")
        if n_rows == 0:
            return
        self._arguments.set_table(table)
        self._arguments.set_logits(logits, adjusted)
        self._arguments.set_rows(slots, positions, out)
        self._arguments.set(num_rows=n_rows)
        parallel = n_rows * vocab >= arguments.PARALLEL_MIN_LOGITS
        num_threads = min(n_rows, self._max_threads, torch.get_num_threads()) if parallel else 1
        row_kernel(kernel_element(logits.dtype))(self._arguments.packed(), num_threads)

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compile the kernel for logits of `dtype`, or load it from numba's cache: seconds the first time."""
        table = SamplingTable(1, 1)
        row = torch.zeros((1, self._vocab), dtype=dtype)
        self.sample_rows(row, np.zeros(1, np.int32), np.zeros(1, np.int64), table, np.empty(1, np.int32))
