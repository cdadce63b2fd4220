"""A step's sampling where whole rows are at hand: on one rank, and on t ranks for the rows that one owns."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from albireo.gpu_worker.collectives.interface import Alone
from albireo.gpu_worker.sampling.adjust import Adjuster
from albireo.gpu_worker.sampling.cpu import CpuSampler
from albireo.gpu_worker.sampling.interface import Int32s, Int64s, SampledRows
from albireo.gpu_worker.sampling.logprobs import LogprobScorer
from albireo.gpu_worker.sampling.table import SamplingTable
from albireo.shm.layout import LOGPROB

LogprobRecords = NDArray[Any]
"""`layout.LOGPROB` [n]"""


class WholeRows:
    """A `StepSampler` that exchanges nothing. Logits are `[n_rows, vocab_size]`, and a rank of several may call it
    for any part of the batch."""

    def __init__(self, vocab_size: int, table: SamplingTable) -> None:
        self._table = table
        self._sampler = CpuSampler(vocab_size)
        self._adjuster = Adjuster(0, vocab_size)
        self._scorer = LogprobScorer(0, vocab_size, Alone())

    def sample(self, logits: Tensor, slots: Int32s, positions: Int64s, sampling_slice: int) -> SampledRows:
        tokens = np.empty(len(slots), np.int32)
        self.sample_tokens(logits, slots, positions, tokens)
        return SampledRows(tokens, self.logprobs(logits, slots, tokens))

    def sample_tokens(self, logits: Tensor, slots: Int32s, positions: Int64s, tokens: Int32s) -> None:
        """Write the rows' tokens to `tokens` int32 [n_rows]."""
        if len(slots) == 0:
            return
        adjusted = self._adjuster.adjust(logits, slots, positions, self._table)
        self._sampler.sample_rows(logits, slots, positions, self._table, tokens, adjusted)

    def logprobs(self, logits: Tensor, slots: Int32s, tokens: Int32s) -> LogprobRecords:
        """As `SampledRows.logprobs`."""
        return asked_logprobs(self._scorer, logits, slots, tokens, self._table)

    def score(self, logits: Tensor, targets: Int32s, num_top: Int32s) -> LogprobRecords:
        return self._scorer.score(logits, targets, num_top)


def asked_logprobs(
    scorer: LogprobScorer, logits: Tensor, slots: Int32s, tokens: Int32s, table: SamplingTable
) -> LogprobRecords:
    """Records of the rows whose slot asks for logprobs, in row order."""
    num_top = table.num_logprobs[slots]
    is_asked = num_top >= 0
    if not np.count_nonzero(is_asked):
        return np.empty(0, LOGPROB)
    asked = np.flatnonzero(is_asked)
    if asked.size == len(slots):
        return scorer.score(logits, tokens, num_top)
    return scorer.score(logits.index_select(0, torch.from_numpy(asked)), tokens[asked], num_top[asked])
