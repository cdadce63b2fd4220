"""How t ranks sample a step: gathered, sequence-parallel or local. All of them give the same token for the same
logits, as `oracle` does; they differ in what moves between ranks and in who computes what.

gathered             every rank gets all logits and samples all rows: the baseline, as today's engines do it
sequence-parallel    an all-to-all gives every rank whole rows, its own slice of the batch; it samples those, and the
                     tokens are gathered. From "Scaling LLM Inference Beyond Amdahl's Limits", arXiv 2606.01927
local                no logits move (`local`); rows that this cannot decide take the sequence-parallel path

On one rank all of them are `WholeRows`.
"""

import numpy as np
import torch
from torch import Tensor

from albireo.checkpoint.shard import ModelShard
from albireo.config import SamplingMode
from albireo.gpu_worker.collectives.interface import Collectives
from albireo.gpu_worker.sampling.adjust import Adjuster
from albireo.gpu_worker.sampling.adjust_kernels import adjust_kernel
from albireo.gpu_worker.sampling.arguments import kernel_element
from albireo.gpu_worker.sampling.decide_kernel import decide_kernel
from albireo.gpu_worker.sampling.interface import Int32s, Int64s, SampledRows, StepSampler
from albireo.gpu_worker.sampling.local import LocalSampler
from albireo.gpu_worker.sampling.local_kernels import share_kernel
from albireo.gpu_worker.sampling.logprob_kernels import score_kernel
from albireo.gpu_worker.sampling.logprob_merge import merge_kernel
from albireo.gpu_worker.sampling.logprobs import LogprobScorer
from albireo.gpu_worker.sampling.row_exchange import RowExchange, RowGather
from albireo.gpu_worker.sampling.row_kernel import row_kernel
from albireo.gpu_worker.sampling.table import SamplingTable
from albireo.gpu_worker.sampling.whole_rows import LogprobRecords, WholeRows, asked_logprobs
from albireo.shm.layout import LOGPROB


def make_step_sampler(
    mode: SamplingMode,
    shard: ModelShard,
    vocab_size: int,
    collectives: Collectives,
    table: SamplingTable,
    dtype: torch.dtype = torch.float32,
) -> StepSampler:
    """A rank's sampler. Compiles the kernels for logits of `dtype`, or loads them from numba's cache: seconds the
    first time; logits of another type pay for theirs in their first step. Raises ValueError for a vocabulary or a
    dtype that the kernels do not take."""
    element = kernel_element(dtype)
    for kernel in (row_kernel, adjust_kernel, score_kernel):
        kernel(element)
    merge_kernel()
    rows = WholeRows(vocab_size, table)
    if collectives.size == 1:
        return rows
    if mode == "gathered":
        return GatheredSampler(rows, RowGather(shard.vocab, vocab_size, collectives))
    sliced = SequenceParallelSampler(rows, shard, vocab_size, collectives, table)
    if mode == "sequence-parallel":
        return sliced
    share_kernel(element)
    decide_kernel()
    return LocalModeSampler(sliced, shard, vocab_size, collectives, table)


class GatheredSampler:
    """Every rank samples all rows."""

    def __init__(self, rows: WholeRows, gather: RowGather) -> None:
        self._rows = rows
        self._gather = gather

    def sample(self, logits: Tensor, slots: Int32s, positions: Int64s, sampling_slice: int) -> SampledRows:
        return self._rows.sample(self._gather(logits), slots, positions, sampling_slice)

    def score(self, logits: Tensor, targets: Int32s, num_top: Int32s) -> LogprobRecords:
        return self._rows.score(self._gather(logits), targets, num_top)


class SequenceParallelSampler:
    """Every rank samples its own slice of the batch. What is exchanged has shapes that follow from `sampling_slice`."""

    def __init__(
        self, rows: WholeRows, shard: ModelShard, vocab_size: int, collectives: Collectives, table: SamplingTable
    ) -> None:
        self._rows = rows
        self._exchange = RowExchange(shard.vocab, vocab_size, collectives)
        self._scorer = LogprobScorer(shard.vocab.start, shard.vocab.size, collectives)
        self._collectives = collectives
        self._table = table

    def sample(self, logits: Tensor, slots: Int32s, positions: Int64s, sampling_slice: int) -> SampledRows:
        if len(slots) == sampling_slice == 0:
            return SampledRows(np.empty(0, np.int32), np.empty(0, LOGPROB))
        mine = self._exchange.slice_of(len(slots), sampling_slice)
        own = self._exchange(logits, sampling_slice)
        own_tokens = self._sample_own(own, slots[mine], positions[mine], sampling_slice)
        tokens = self._gather_tokens(own_tokens)[: len(slots)]
        asked = self._table.num_logprobs[slots] >= 0
        if not asked.any():
            return SampledRows(tokens, np.empty(0, LOGPROB))
        records = np.zeros(sampling_slice, LOGPROB)
        num_own = len(own)
        records[:num_own][asked[mine]] = self._rows.logprobs(own, slots[mine], own_tokens[:num_own])
        sent = torch.from_numpy(records.view(np.uint8))
        received: LogprobRecords = self._collectives.all_gather(sent).view(-1).numpy().view(LOGPROB)
        return SampledRows(tokens, received[: len(slots)][asked])

    def sample_tokens(
        self, logits: Tensor, rows: Int32s, slots: Int32s, positions: Int64s, sampling_slice: int
    ) -> Int32s:
        """Tokens of the batch's `rows` alone: int32 [len(rows)]. Their logprobs are the caller's."""
        mine = self._exchange.slice_of(len(rows), sampling_slice)
        own = self._exchange(logits, sampling_slice, rows)
        slots, positions = slots[rows[mine]], positions[rows[mine]]
        return self._gather_tokens(self._sample_own(own, slots, positions, sampling_slice))[: len(rows)]

    def score(self, logits: Tensor, targets: Int32s, num_top: Int32s) -> LogprobRecords:
        return self._scorer.score(logits, targets, num_top)

    def _sample_own(self, own: Tensor, slots: Int32s, positions: Int64s, sampling_slice: int) -> Int32s:
        """Tokens of this rank's slice, which need not be full: int32 [sampling_slice]."""
        tokens = np.zeros(sampling_slice, np.int32)
        self._rows.sample_tokens(own, slots, positions, tokens[: len(own)])
        return tokens

    def _gather_tokens(self, own_tokens: Int32s) -> Int32s:
        tokens: Int32s = self._collectives.all_gather(torch.from_numpy(own_tokens)).view(-1).numpy()
        return tokens


class LocalModeSampler:
    """No logits move but those of rows that need them."""

    def __init__(
        self,
        wide_rows: SequenceParallelSampler,
        shard: ModelShard,
        vocab_size: int,
        collectives: Collectives,
        table: SamplingTable,
    ) -> None:
        self._wide_rows = wide_rows
        self._local = LocalSampler(shard.vocab, vocab_size, collectives, table)
        self._adjuster = Adjuster(shard.vocab.start, shard.vocab.size)
        self._scorer = LogprobScorer(shard.vocab.start, shard.vocab.size, collectives)
        self._table = table

    def sample(self, logits: Tensor, slots: Int32s, positions: Int64s, sampling_slice: int) -> SampledRows:
        tokens = np.empty(len(slots), np.int32)
        rows = np.arange(len(slots), dtype=np.int32)
        if sampling_slice:
            is_wide = self._local.needs_whole_rows(slots)
            wide, rows = rows[is_wide], rows[~is_wide]
            tokens[wide] = self._wide_rows.sample_tokens(logits, wide, slots, positions, sampling_slice)
        adjusted = self._adjuster.adjust(logits, slots, positions, self._table)
        self._local.sample(logits, rows, slots, positions, adjusted, tokens)
        return SampledRows(tokens, asked_logprobs(self._scorer, logits, slots, tokens, self._table))

    def score(self, logits: Tensor, targets: Int32s, num_top: Int32s) -> LogprobRecords:
        return self._scorer.score(logits, targets, num_top)
