"""The sampler that the CPU worker runs: `kernels` over the rows of a batch."""

from typing import Final

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from albireo.gpu_worker.sampling import kernels
from albireo.gpu_worker.sampling.params import SamplingTable

PARALLEL_MIN_LOGITS: Final = 1 << 20
"""Batches with fewer logits than this (0.1 to 2 ms on one core) stay on the calling thread: on cores that others use
too, waking numba's pool costs up to milliseconds, because a parallel region waits for its last thread."""
MAX_VOCAB: Final = 2 ** (63 - kernels.MASS_BITS) - 1
"""The masses' sum must fit a signed 64-bit integer."""

Columns = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int32], NDArray[np.int64]]
"""A `SamplingTable`'s tensors in the kernels' order."""


class CpuSampler:
    """A `params.Sampler` for CPU tensors. Owns its working memory, so one thread at a time may call it."""

    def __init__(self, vocab: int) -> None:
        """`vocab`: width of the logits, at most `MAX_VOCAB`."""
        if not 1 <= vocab <= MAX_VOCAB:
            raise ValueError(f"vocabulary of {vocab} tokens: the sampler takes 1 to {MAX_VOCAB}")
        self._vocab = vocab
        self._table: SamplingTable | None = None
        self._columns: Columns | None = None
        rows = int(numba.config.NUMBA_NUM_THREADS)
        num_blocks = -(-vocab // kernels.BLOCK)
        self._scratch = kernels.Scratch(
            maxima=np.empty((rows, num_blocks), np.float32),
            noise=np.empty((rows, kernels.BLOCK), np.uint32),
            bins=np.empty((rows, kernels.NUM_BINS), np.int64),
            ids=np.empty((rows, num_blocks * kernels.BLOCK), np.int32),
            keys=np.empty((rows, num_blocks * kernels.BLOCK), np.int32),
        )

    def sample(
        self,
        logits: torch.Tensor,
        slots: torch.Tensor,
        positions: torch.Tensor,
        table: SamplingTable,
        out: torch.Tensor,
    ) -> None:
        n_rows, vocab = logits.shape
        if vocab != self._vocab or logits.stride(1) != 1:
            raise ValueError(f"logits {tuple(logits.shape)}, strides {logits.stride()}: expected rows of {self._vocab}")
        if n_rows == 0:
            return
        # a new memory layout would compile a new kernel, for seconds, in the middle of serving
        assert slots.is_contiguous() and positions.is_contiguous() and out.is_contiguous()
        stride = logits.stride(0)
        flat = logits.as_strided(((n_rows - 1) * stride + vocab,), (1,))
        raw = flat.numpy() if flat.dtype == torch.float32 else flat.view(torch.uint16).numpy()
        columns = self._columns_of(table)
        arguments = (raw, stride, vocab, slots.numpy(), positions.numpy(), *columns, out.numpy(), self._scratch)
        num_threads = min(n_rows, int(numba.get_num_threads()))
        if num_threads > 1 and n_rows * vocab >= PARALLEL_MIN_LOGITS:
            kernels.sample_rows_parallel(*arguments, num_threads)
        else:
            kernels.sample_rows(*arguments, 0, 1)

    def _columns_of(self, table: SamplingTable) -> Columns:
        """The table's tensors as numpy arrays on the same memory; kept, since each conversion costs a microsecond."""
        if self._columns is None or table is not self._table:
            self._table = table
            self._columns = (
                table.temperature.numpy(),
                table.top_p.numpy(),
                table.min_p.numpy(),
                table.top_k.numpy(),
                table.seed.numpy(),
            )
        return self._columns

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compile both kernels for logits of `dtype`, or load them from numba's cache: seconds the first time."""
        n_rows = max(2, -(-PARALLEL_MIN_LOGITS // self._vocab))
        ones = torch.ones(1)
        table = SamplingTable(ones, ones, ones, torch.ones(1, dtype=torch.int32), torch.ones(1, dtype=torch.int64))
        slots = torch.zeros(n_rows, dtype=torch.int32)
        positions = torch.zeros(n_rows, dtype=torch.int64)
        out = torch.empty(n_rows, dtype=torch.int32)
        logits = torch.zeros((1, self._vocab), dtype=dtype)
        self.sample(logits, slots[:1], positions[:1], table, out[:1])
        self.sample(logits.expand(n_rows, -1), slots, positions, table, out)
