"""Sampling on t ranks without moving logits: `local_kernels` on each rank's share, tiny exchanges in between."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from albireo.checkpoint.shard import Span
from albireo.gpu_worker.collectives.interface import Collectives
from albireo.gpu_worker.sampling import arguments
from albireo.gpu_worker.sampling.arguments import Arguments, Element, kernel_element
from albireo.gpu_worker.sampling.decide_kernel import decide_kernel
from albireo.gpu_worker.sampling.interface import AdjustedRows, Int32s, Int64s
from albireo.gpu_worker.sampling.kernels import BLOCK
from albireo.gpu_worker.sampling.local_kernels import CANDIDATE, OPEN, RECORD_BYTES, STATE, share_kernel
from albireo.gpu_worker.sampling.table import SamplingTable
from albireo.limits import MAX_LOCAL_TOP_K

PARALLEL_MIN_CANDIDATES: Final = 1 << 15
"""Batches with fewer candidates than this (about 0.3 ms on one core) are merged on the calling thread."""


class LocalSampler:
    """Rows whose token the ranks find together, each from its own share of the logits.

    Exact for greedy rows and for any temperature, min_p and top_p; for top_k up to `MAX_LOCAL_TOP_K`. One exchange
    decides greedy and pure temperature rows, and rows under top_k; one more those under min_p and nearly all under
    top_p, 1 + ln(1 / top_p) pairs of exchanges at the most on average.
    """

    def __init__(self, share: Span, vocab_size: int, collectives: Collectives, table: SamplingTable) -> None:
        self._size = share.size
        self._vocab_size = vocab_size
        self._collectives = collectives
        self._table = table
        self._max_threads = torch.get_num_threads()
        self._num_blocks = -(-share.size // BLOCK)
        self._arguments = Arguments()
        self._arguments.set_table(table)
        width = max(self._num_blocks * BLOCK, collectives.size * MAX_LOCAL_TOP_K)
        self._arguments.set_scratch(self._max_threads, width)
        self._arguments.set(
            size=share.size, base=share.start, vocab=vocab_size, num_blocks=self._num_blocks, num_ranks=collectives.size
        )
        self._phase: Int32s = np.zeros(0, np.int32)
        self._candidate_rows: Int32s = np.zeros(0, np.int32)
        self._outbox = torch.empty(0, dtype=torch.uint8)

    def needs_whole_rows(self, slots: Int32s) -> NDArray[np.bool_]:
        """bool [n_rows]: which rows this sampler cannot decide."""
        top_k = self._table.top_k[slots]
        wide = (top_k > MAX_LOCAL_TOP_K) & (top_k < self._vocab_size)
        result: NDArray[np.bool_] = wide & (self._table.temperature[slots] > 0.0)
        return result

    def sample(
        self,
        logits: Tensor,
        rows: Int32s,
        slots: Int32s,
        positions: Int64s,
        adjusted: AdjustedRows | None,
        tokens: Int32s,
    ) -> None:
        """Write to `tokens` [n_rows] those of the batch's `rows`, ascending; all but `rows` as in `StepSampler`.
        `adjusted` is of the rank's share."""
        self._reserve(len(slots))
        self._arguments.set_logits(logits, adjusted)
        self._arguments.set_rows(slots, positions, tokens)
        self._phase[rows] = OPEN
        num_candidate_rows, max_candidates = self._plan_candidates(rows, slots)
        self._arguments.set(max_candidates=max_candidates)
        element = kernel_element(logits.dtype)
        while rows.size:
            self._exchange(element, rows, num_candidate_rows * max_candidates)
            rows = rows[self._phase[rows].nonzero()]
            num_candidate_rows = 0

    def _exchange(self, element: Element, rows: Int32s, num_candidates: int) -> None:
        """One round: every rank's answers about `rows`, and what follows from all of them."""
        sent_bytes = rows.size * RECORD_BYTES + num_candidates * CANDIDATE.itemsize
        if self._outbox.numel() < sent_bytes:
            self._outbox = torch.empty(2 * sent_bytes, dtype=torch.uint8)
        sent = self._outbox[:sent_bytes]
        self._arguments.own(rows=rows)
        self._arguments.set(num_rows=rows.size, records=sent.data_ptr(), candidates_at=rows.size * RECORD_BYTES)
        threads = self._threads(rows.size, rows.size * self._size >= arguments.PARALLEL_MIN_LOGITS)
        share_kernel(element)(self._arguments.packed(), threads)

        received = self._collectives.all_gather(sent)
        self._arguments.set(records=received.data_ptr(), record_bytes=sent_bytes)
        num_received = num_candidates * self._collectives.size
        threads = self._threads(rows.size, num_received >= PARALLEL_MIN_CANDIDATES)
        decide_kernel()(self._arguments.packed(), threads)

    def _threads(self, num_rows: int, parallel: bool) -> int:
        return min(num_rows, self._max_threads, torch.get_num_threads()) if parallel else 1

    def _plan_candidates(self, rows: Int32s, slots: Int32s) -> tuple[int, int]:
        """Numbers the rows that are decided from candidates: (how many they are, candidates of each)."""
        top_k = self._table.top_k[slots[rows]]
        cut = (top_k > 0) & (top_k < self._vocab_size)
        if not np.count_nonzero(cut):
            return 0, 0
        cut &= self._table.temperature[slots[rows]] > 0.0
        self._candidate_rows[rows] = np.where(cut, np.cumsum(cut) - 1, -1)
        max_candidates = int(top_k[cut].max(initial=0))
        assert max_candidates <= MAX_LOCAL_TOP_K, "the plan has no slice for rows under a large top_k"
        return int(np.count_nonzero(cut)), max_candidates

    def _reserve(self, num_rows: int) -> None:
        """Makes room for a batch of `num_rows`."""
        if num_rows <= len(self._phase):
            return
        num_rows = max(num_rows, 2 * len(self._phase))
        state = np.zeros(num_rows, STATE)
        self._phase = state["phase"]
        self._candidate_rows = np.zeros(num_rows, np.int32)
        self._arguments.own(
            state=state,
            candidate_rows=self._candidate_rows,
            maxima=np.empty((num_rows, self._num_blocks), np.float32),
        )
