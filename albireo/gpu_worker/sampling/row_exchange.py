"""Whole rows of logits from ranks' shares of the vocabulary: all rows on every rank, or on each rank its own.

Shares are `Span.width` columns wide on every rank; only the last ones hold padding, so side by side they are rows of
the whole vocabulary with the padding at the end. They lie side by side in a buffer that is kept: memory that is new in
every step costs its page faults.
"""

import torch
from torch import Tensor

from albireo.checkpoint.shard import Span
from albireo.gpu_worker.collectives.interface import Collectives
from albireo.gpu_worker.sampling.interface import Int32s


class RowBuffer:
    """Rows `[.., width]` that are written anew in every step; grows as batches do."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._rows = torch.empty((0, width))

    def rows(self, num_rows: int, dtype: torch.dtype) -> Tensor:
        """`[num_rows, width]`, contiguous: whatever was there."""
        if num_rows > len(self._rows) or dtype != self._rows.dtype:
            self._rows = torch.empty((num_rows, self._width), dtype=dtype)
        return self._rows[:num_rows]


class RowGather:
    """All rows on every rank."""

    def __init__(self, share: Span, vocab_size: int, collectives: Collectives) -> None:
        self._collectives = collectives
        self._vocab_size = vocab_size
        self._received = RowBuffer(share.width)
        self._whole = RowBuffer(collectives.size * share.width)

    def __call__(self, logits: Tensor) -> Tensor:
        """The rank's share `[n_rows, width]` -> all of the logits `[n_rows, vocab_size]`, a view."""
        if len(logits) == 0:
            return logits.new_empty((0, self._vocab_size))
        size, (num_rows, width) = self._collectives.size, logits.shape
        out = self._received.rows(size * num_rows, logits.dtype).view(size, num_rows, width)
        return _side_by_side(self._collectives.all_gather(logits.contiguous(), out), self._whole)[:, : self._vocab_size]


class RowExchange:
    """To each rank its slice of the rows."""

    def __init__(self, share: Span, vocab_size: int, collectives: Collectives) -> None:
        self._collectives = collectives
        self._vocab_size = vocab_size
        self._width = share.width
        self._padded = RowBuffer(share.width)
        self._received = RowBuffer(share.width)
        self._whole = RowBuffer(collectives.size * share.width)

    def slice_of(self, num_rows: int, sampling_slice: int) -> slice:
        """This rank's rows of `num_rows`: at most `sampling_slice`, for the last ranks fewer or none."""
        assert num_rows <= sampling_slice * self._collectives.size, (num_rows, sampling_slice)
        start = min(self._collectives.rank * sampling_slice, num_rows)
        return slice(start, min(start + sampling_slice, num_rows))

    def __call__(self, logits: Tensor, sampling_slice: int, rows: Int32s | None = None) -> Tensor:
        """The rank's share `[n_rows, width]` -> whole rows `[<= sampling_slice, vocab_size]`, a view: those of its
        `slice_of` the batch, or of `rows` alone."""
        num_rows = len(logits) if rows is None else len(rows)
        mine = self.slice_of(num_rows, sampling_slice)
        padded_rows = self._collectives.size * sampling_slice
        if rows is None and num_rows == padded_rows and logits.is_contiguous():
            padded = logits
        else:
            padded = self._padded.rows(padded_rows, logits.dtype)
            if rows is None:
                padded[:num_rows].copy_(logits)
            else:
                torch.index_select(logits, 0, torch.from_numpy(rows), out=padded[:num_rows])
        shape = (self._collectives.size, sampling_slice, self._width)
        out = self._received.rows(padded_rows, logits.dtype).view(shape)
        received = self._collectives.all_to_all(padded.view(shape), out)
        return _side_by_side(received[:, : mine.stop - mine.start], self._whole)[:, : self._vocab_size]


def _side_by_side(shares: Tensor, buffer: RowBuffer) -> Tensor:
    """`[size, n_rows, width]` -> `[n_rows, size * width]`."""
    size, num_rows, width = shares.shape
    whole = buffer.rows(num_rows, shares.dtype)
    whole.view(num_rows, size, width).copy_(shares.transpose(0, 1))
    return whole
