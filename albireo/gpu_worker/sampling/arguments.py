"""What the sampler's kernels are called with: one record of addresses and sizes, and the memory behind it."""

from typing import Any, Final

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from albireo.gpu_worker.sampling.interface import AdjustedRows, Int32s, Int64s
from albireo.gpu_worker.sampling.kernels import BLOCK, NUM_BINS
from albireo.gpu_worker.sampling.table import SamplingTable

PARALLEL_MIN_LOGITS: Final = 1 << 20
"""Batches with fewer logits than this (0.1 to 2 ms on one core) stay on the calling thread: on cores that others use
too, waking threads costs up to milliseconds, because a team waits for its last one."""

_FIELDS: Final = (
    "counters",  # int64 [2], 0 at first: rows that threads have taken; threads that have come
    "num_rows",
    "rows",  # int32 [num_rows]: the batch's rows that take part
    "logits",
    "stride",  # elements from row to row
    "size",  # real columns of a row
    "base",  # id of a row's first token
    "vocab",  # tokens of the whole vocabulary
    "adjusted_index",  # as `AdjustedRows.index`; 0: no row is adjusted
    "adjusted",
    "adjusted_stride",
    "slots",
    "positions",
    "temperature",
    "top_p",
    "min_p",
    "top_k",
    "seed",
    "num_blocks",
    "maxima",  # float32 [.., num_blocks]: per thread for whole rows, per row of the batch for shares
    "noise",  # uint32 [num_threads, BLOCK]
    "bins",  # int64 [num_threads, NUM_BINS]
    "ids",  # int32 [num_threads, scratch_width]
    "keys",  # int32 [num_threads, scratch_width]
    "scratch_width",
    "tokens",  # int32 [n_rows]: the outcome
    "state",  # `local_kernels.STATE` [n_rows]
    "num_ranks",
    "records",  # what this rank sends, or [num_ranks, ..] what all have sent: `record_bytes` of each
    "record_bytes",
    "candidates_at",  # bytes into the records where the candidates of rows under top_k begin
    "candidate_rows",  # int32 [n_rows]: which of those a row is, -1 for none; unused if max_candidates is 0
    "max_candidates",  # per row and rank
)
Element = Any
"""How the kernels see logits: np.float32, or np.uint16 for the bits of bf16. mypy takes no numpy class for hashable."""
ARGUMENTS: Final = np.dtype([(name, "<i8") for name in _FIELDS])
"""Arguments of every kernel of the sampler, as far as it needs them: addresses and sizes."""


@intrinsic
def record_pointer(typing_context: Any, address: Any, dtype: Any) -> Any:
    """`address` (an integer) as a pointer to records of the numpy `dtype`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(dtype.dtype)(types.int64, dtype), codegen


class Arguments:
    """The record's values by name. Keeps what it holds addresses of; those of a step are set anew in every step."""

    def __init__(self) -> None:
        self._values = dict.fromkeys(_FIELDS, 0)
        self._owned: dict[str, NDArray[Any]] = {}
        self._table: SamplingTable | None = None
        self._counters = np.zeros(2, np.int64)
        self.own(counters=self._counters)

    def set(self, **values: int) -> None:
        self._values.update(values)

    def own(self, **arrays: NDArray[Any]) -> None:
        """Addresses of C-contiguous arrays, which live as long as they are set."""
        for name, array in arrays.items():
            assert array.flags.c_contiguous, name
            self._owned[name] = array
            self._values[name] = array.ctypes.data

    def set_scratch(self, num_threads: int, width: int) -> None:
        """Working memory of `num_threads` threads for rows of `width` tokens. Pages that no row needs cost nothing."""
        self.own(
            noise=np.empty((num_threads, BLOCK), np.uint32),
            bins=np.empty((num_threads, NUM_BINS), np.int64),
            ids=np.empty((num_threads, width), np.int32),
            keys=np.empty((num_threads, width), np.int32),
        )
        self.set(scratch_width=width)

    def set_table(self, table: SamplingTable) -> None:
        """The parameters' columns, whose arrays stay where they are as long as the table lives."""
        if table is self._table:
            return
        self._table = table
        columns = {name: getattr(table, name) for name in ("temperature", "top_p", "min_p", "top_k", "seed")}
        self.own(**columns)

    def set_logits(self, logits: Tensor, adjusted: AdjustedRows | None) -> None:
        self.set(logits=logits.data_ptr(), stride=logits.stride(0), adjusted_index=0)
        if adjusted is not None:
            self.own(adjusted_index=adjusted.index, adjusted=adjusted.values)
            self.set(adjusted_stride=adjusted.values.shape[1])

    def set_rows(self, slots: Int32s, positions: Int64s, tokens: Int32s) -> None:
        """What the batch's rows are, and where their tokens go; each `[n_rows]`."""
        assert slots.itemsize == tokens.itemsize == 4 and positions.itemsize == 8
        assert len(slots) == len(positions) == len(tokens)
        self.own(slots=slots, positions=positions, tokens=tokens)

    def packed(self) -> tuple[int, ...]:
        """The record's fields, with the counters at 0."""
        self._counters[:] = 0
        return tuple(self._values.values())


def kernel_element(dtype: torch.dtype) -> Element:
    """How the kernels see logits of `dtype`. Raises ValueError for other types than float32 and bfloat16."""
    if dtype == torch.float32:
        return np.float32
    if dtype == torch.bfloat16:
        return np.uint16
    raise ValueError(f"logits of {dtype}: the sampler takes float32 and bfloat16")
