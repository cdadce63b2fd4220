"""Step A of `params` for the rows of a batch that need it, on any share of the vocabulary."""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from albireo.gpu_worker.sampling import arguments
from albireo.gpu_worker.sampling.adjust_kernels import ARGUMENTS, adjust_kernel
from albireo.gpu_worker.sampling.arguments import kernel_element
from albireo.gpu_worker.sampling.interface import AdjustedRows, Int32s, Int64s
from albireo.gpu_worker.sampling.table import SamplingTable

_WIDTHS: Final = {
    "stop_ids_width": "stop_ids",
    "bias_width": "bias_ids",
    "bad_words_width": "bad_words",
    "recent_width": "recent",
    "seen_width": "seen_ids",
    "masks_width": "masks",
}
assert ARGUMENTS.names is not None
_TABLE_FIELDS: Final = ARGUMENTS.names[ARGUMENTS.names.index("min_position") :]


def _table_arguments(table: SamplingTable) -> tuple[int, ...]:
    """Addresses of the table's columns and widths of its rows: they stay as long as it lives."""
    return tuple(
        getattr(table, _WIDTHS[name]).strides[0] // 4 if name in _WIDTHS else getattr(table, name).ctypes.data
        for name in _TABLE_FIELDS
    )


class _BatchArguments:
    """Copies of what a call hands to the kernel, at addresses that are known: numpy takes longer to tell an array's
    address than to copy a batch of it."""

    def __init__(self, num_rows: int) -> None:
        self.rows = np.empty(num_rows, np.int64)
        self.slots = np.empty(num_rows, np.int32)
        self.positions = np.empty(num_rows, np.int64)
        self.addresses: tuple[int, ...] = tuple(each.ctypes.data for each in (self.rows, self.slots, self.positions))
        self.counting = np.arange(num_rows, dtype=np.int32)


class Adjuster:
    """Adjusts a rank's share of rows, token ids [start, start + size). What a token's logit becomes depends on that
    token alone, so shares put together are the same bits as the whole.

    Owned by the worker's main thread; keeps its memory, so an outcome is valid until the next call.
    """

    def __init__(self, start: int, size: int) -> None:
        self._start = start
        self._size = size
        self._counter = np.zeros(1, np.int64)
        self._counter_address: int = self._counter.ctypes.data
        self._index = np.empty(0, np.int32)
        self._values = np.empty((0, size), np.float32)
        self._values_address = 0
        self._arguments = _BatchArguments(0)
        self._table: SamplingTable | None = None
        self._table_arguments: tuple[int, ...] = ()

    def adjust(self, logits: Tensor, slots: Int32s, positions: Int64s, table: SamplingTable) -> AdjustedRows | None:
        """The adjusted rows, float32 [n_adjusted, size]; None if no row needs it.

        logits     float32 or bfloat16 [n_rows, width >= size], the last dimension contiguous; left as they are
        slots      int32 [n_rows]
        positions  int64 [n_rows]: position in its sequence of the token that is sampled
        """
        needed = table.is_special.take(slots) | (positions < table.min_position.take(slots))
        (rows,) = needed.nonzero()
        if not rows.size:
            return None
        adjusted = self._reserve(len(slots), rows)
        if self._size:
            self._run(logits, rows, slots, positions, table)
        return adjusted

    def _reserve(self, num_rows: int, rows: Int64s) -> AdjustedRows:
        """The outcome for these of `num_rows` rows, with the values still to be filled in."""
        if self._index.size < num_rows:
            self._index = np.empty(2 * num_rows, np.int32)
            self._arguments = _BatchArguments(2 * num_rows)
        if len(self._values) < rows.size:
            self._values = np.empty((min(2 * rows.size, self._index.size), self._size), np.float32)
            self._values_address = self._values.ctypes.data
        index = self._index[:num_rows]
        index.fill(-1)
        index[rows] = self._arguments.counting[: rows.size]
        return AdjustedRows(index, self._values[: rows.size])

    def _run(self, logits: Tensor, rows: Int64s, slots: Int32s, positions: Int64s, table: SamplingTable) -> None:
        assert logits.stride(1) == 1 and logits.shape[1] >= self._size
        if table is not self._table:
            self._table, self._table_arguments = table, _table_arguments(table)
        given = self._arguments
        given.rows[: rows.size], given.slots[: slots.size], given.positions[: positions.size] = rows, slots, positions
        rows_address, slots_address, positions_address = given.addresses
        self._counter[0] = 0
        parallel = rows.size * self._size >= arguments.PARALLEL_MIN_LOGITS
        num_threads = min(rows.size, torch.get_num_threads()) if parallel else 1
        adjust_kernel(kernel_element(logits.dtype))(
            (
                self._counter_address, rows.size, rows_address, logits.data_ptr(), logits.stride(0),
                self._start, self._size, self._values_address, slots_address, positions_address,
                *self._table_arguments,
            ),
            num_threads,
        )  # fmt: skip
