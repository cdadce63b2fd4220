"""Log-probabilities under the model's own distribution (`params`), on any number of ranks.

Two exchanges of a few bytes per row: 8, then 16 and 8 for each likely token asked for, from every rank. A row whose
largest logit is -inf has log-probabilities of -inf alone. One whose largest is +inf is the limit: the tokens that have
it share all of the mass, the others have none. A target outside the vocabulary is impossible: -inf, ranked like it.
"""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from albireo.gpu_worker.collectives.interface import Collectives
from albireo.gpu_worker.sampling import arguments
from albireo.gpu_worker.sampling.arguments import kernel_element
from albireo.gpu_worker.sampling.interface import Int32s
from albireo.gpu_worker.sampling.kernels import BLOCK, NUM_BINS
from albireo.gpu_worker.sampling.logprob_kernels import (
    ARGUMENTS,
    BOTH,
    CANDIDATE,
    SURVEY,
    SURVEYED,
    WEIGH,
    WEIGHED,
    score_kernel,
)
from albireo.gpu_worker.sampling.logprob_merge import merge_kernel
from albireo.limits import MAX_LOGPROBS
from albireo.shm.layout import LOGPROB

MAX_ROWS: Final = 256
"""Rows scored at a time: bounds the working memory, and what is exchanged, to about 1 MB."""


class LogprobScorer:
    """Scores tokens from a rank's share of the logits, token ids [start, start + size); all ranks call it together,
    with the same targets, and get the same bits. Owned by the worker's main thread; keeps its working memory."""

    def __init__(self, start: int, size: int, collectives: Collectives) -> None:
        self._size = size
        self._collectives = collectives
        self._max_threads = torch.get_num_threads()
        num_blocks = -(-size // BLOCK)
        width = num_blocks * BLOCK
        self._counters = np.zeros(2, np.int64)
        self._maxima = np.empty((0, num_blocks), np.float32)
        self._bins = np.empty((self._max_threads, NUM_BINS), np.int64)
        self._ids = np.empty((self._max_threads, width), np.int32)
        self._keys = np.empty((self._max_threads, width), np.int32)
        self._heads = np.empty(collectives.size, np.int64)
        assert ARGUMENTS.names is not None
        self._values = dict.fromkeys(ARGUMENTS.names, 0) | {
            "counters": self._counters.ctypes.data,
            "num_ranks": collectives.size,
            "start": start,
            "size": size,
            "num_blocks": num_blocks,
            "scratch_width": width,
            "bins": self._bins.ctypes.data,
            "ids": self._ids.ctypes.data,
            "keys": self._keys.ctypes.data,
            "heads": self._heads.ctypes.data,
        }

    def score(self, logits: Tensor, targets: Int32s, num_top: Int32s) -> NDArray[Any]:
        """`layout.LOGPROB` [n_rows]: token, logprob, rank, num_top, top_ids and top_logprobs are filled in, unused
        top ids with -1, and the rest is 0.

        logits   float32 or bfloat16 [n_rows, width >= size], the last dimension contiguous; left as they are
        targets  int32 [n_rows]: token ids
        num_top  int32 [n_rows]: how many of the most likely tokens; the vocabulary's size and MAX_LOGPROBS bound it
        """
        assert logits.stride(1) == 1 and logits.shape[1] >= self._size
        out = np.zeros(len(targets), LOGPROB)
        targets = np.ascontiguousarray(targets, np.int32)
        num_top = np.clip(num_top, 0, MAX_LOGPROBS).astype(np.int32)
        for first in range(0, len(targets), MAX_ROWS):
            rows = slice(first, first + MAX_ROWS)
            self._score(logits[rows], targets[rows], num_top[rows], out[rows])
        return out

    def _score(self, logits: Tensor, targets: Int32s, num_top: Int32s, out: NDArray[Any]) -> None:
        """At most MAX_ROWS rows, into `out`, which is zero."""
        num_rows, max_top = len(targets), int(num_top.max())
        if len(self._maxima) < num_rows:
            self._maxima = np.empty((min(2 * num_rows, MAX_ROWS), self._maxima.shape[1]), np.float32)
        weighed_bytes = WEIGHED.itemsize + max_top * CANDIDATE.itemsize
        surveyed = torch.empty(num_rows * SURVEYED.itemsize, dtype=torch.uint8)
        weighed = torch.empty(num_rows * weighed_bytes, dtype=torch.uint8)
        self._values.update(
            num_rows=num_rows, logits=logits.data_ptr(), stride=logits.stride(0), targets=targets.ctypes.data,
            num_top=num_top.ctypes.data, max_top=max_top, surveyed=surveyed.data_ptr(), weighed=weighed.data_ptr(),
            weighed_bytes=weighed_bytes, maxima=self._maxima.ctypes.data, out=out.ctypes.data,
        )  # fmt: skip
        score = score_kernel(kernel_element(logits.dtype))
        parallel = num_rows * self._size >= arguments.PARALLEL_MIN_LOGITS
        num_threads = min(num_rows, self._max_threads, torch.get_num_threads()) if parallel else 1
        if self._collectives.size == 1:
            all_surveyed, all_weighed = surveyed, weighed
            score(self._packed(passes=BOTH, all_surveyed=surveyed.data_ptr()), num_threads)
        else:
            score(self._packed(passes=SURVEY), num_threads)
            all_surveyed = self._collectives.all_gather(surveyed)
            score(self._packed(passes=WEIGH, all_surveyed=all_surveyed.data_ptr()), num_threads)
            all_weighed = self._collectives.all_gather(weighed)
        merge_kernel()(self._packed(all_weighed=all_weighed.data_ptr()), 1)

    def _packed(self, **values: int) -> tuple[int, ...]:
        """The kernels' arguments, some of them anew and the counters at 0."""
        self._values.update(values)
        self._counters[:] = 0
        return tuple(self._values.values())
