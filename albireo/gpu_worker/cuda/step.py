"""What a step launches, in order: plan, inputs, model, sampling, results. No result of the device is waited for.

A step that only decodes takes nothing from the host but the plan in the ring, so it can be captured once and launched
again as one CUDA graph; one with prompt chunks has its shapes from the plan and is launched kernel by kernel, while the
device works on the steps before.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import triton
from torch import Tensor

from albireo.config import SchedulerConfig
from albireo.gpu_worker.attention.interface import Attention
from albireo.gpu_worker.cuda.kernels.finish_step import finish_step
from albireo.gpu_worker.cuda.kernels.stamp import stamp
from albireo.gpu_worker.cuda.kernels.step_inputs import LANES, chunk_inputs, decode_inputs
from albireo.gpu_worker.cuda.rank_samplers import StepSampler
from albireo.gpu_worker.cuda.rings import StepRings
from albireo.gpu_worker.cuda.runtime import Runtime
from albireo.gpu_worker.cuda.state import CudaState, HostState
from albireo.gpu_worker.cuda.step_buffers import Int32s, Staging, StepBuffers
from albireo.gpu_worker.kv_cache import KVCache
from albireo.gpu_worker.models.decoder import DecoderModel
from albireo.gpu_worker.prompt_scores import PromptScores, find_prompt_scores
from albireo.shm.plan_ring import PlanCounts, PlanSlot

SCORED_ROWS = 128
"""Positions whose prompt logprobs are computed at a time: 2,048 rows of a large vocabulary would be a gigabyte."""

_SAMPLING = 1
"""Where `stamp` notes that sampling begins; 0 is the step's begin, 2 its end."""
_SWAPPING = 3
"""Likewise block copies, before the step's begin: `swap_ns` in layout.TOKEN_HEADER."""


@dataclass(frozen=True, slots=True)
class WhoseLogprobs:
    """To whom the records belong that a step leaves in the token ring: parallel arrays [n]. Their positions the device
    has written: a row may have waited for its grammar's mask, which the host does not follow."""

    slots: Int32s
    generations: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """What the host must remember of it until it is done."""

    num_rows: int
    """Of its results."""
    logprobs: list[WhoseLogprobs]
    """In the records' order."""
    samples: bool
    """False for a step of prompt chunks none of which ends."""


class StepLauncher:
    """Launches steps on one device. `model`, `kv` and `attention` lie there, as does all state."""

    def __init__(
        self,
        config: SchedulerConfig,
        runtime: Runtime,
        rings: StepRings,
        state: CudaState,
        model: DecoderModel,
        kv: KVCache,
        attention: Attention,
        sampler: StepSampler,
    ) -> None:
        self._config = config
        self._rings = rings
        self._state = state
        self._model = model
        self.kv = kv
        self._attention = attention
        self._sampler = sampler
        self._is_timed = runtime.is_timed
        self._lanes = triton.next_power_of_2(config.max_num_seqs)
        self.buffers = StepBuffers(config, state, runtime)
        num_steps = rings.num_slots
        self._chunks = Staging(num_steps, 3 * config.max_num_batched_tokens + 6 * config.max_num_seqs, runtime)
        self._scores = Staging(num_steps, 4 * (config.max_num_batched_tokens + config.max_num_seqs), runtime)
        self._asked = Staging(num_steps, 2 * config.max_num_seqs, runtime)
        self._logits = torch.zeros(
            config.max_num_seqs, model.vocab_width, dtype=model.dtype, device=runtime.device
        )  # fmt: skip

    def rehearse(self) -> None:
        """Runs the largest step of prompts, and a small one, one block of KV standing for all: kernels are compiled,
        and what torch allocates now it keeps for later steps."""
        num_tokens, most = self._config.max_num_batched_tokens, self._config.max_model_len
        query_lens = np.full(-(-num_tokens // most), most, np.int32)
        query_lens[-1] = num_tokens - most * (query_lens.size - 1)
        self._launch_chunk_inputs(self._chunks.send(0), 0, 0, 0, 0)
        self._rehearse_prompts(np.array([2], np.int32))
        hidden = self._rehearse_prompts(query_lens[: self._config.max_num_seqs])
        scored = hidden[:SCORED_ROWS]
        targets = torch.full((len(scored),), -1, dtype=torch.int32, device=hidden.device)
        self._sampler.score(
            self._model.compute_logits(scored), targets, targets, targets + 1, self._rings.logprobs(0)[: len(scored)]
        )
        self._sample(self._model.compute_logits(hidden[: self._config.max_num_seqs]))
        self.stamp_swap()

    def _rehearse_prompts(self, query_lens: Int32s) -> Tensor:
        """Hidden states of whole prompts of so many tokens, which write no KV and are not sampled."""
        buffers, num_tokens, num_chunks = self.buffers, int(query_lens.sum()), query_lens.size
        positions = np.concatenate([np.arange(length) for length in query_lens.tolist()])
        buffers.positions[:num_tokens].copy_(torch.from_numpy(positions))
        buffers.slot_mapping.fill_(-1)
        buffers.slots.zero_()
        buffers.sample_slots.fill_(-1)
        buffers.seq_lens[:num_chunks].copy_(torch.from_numpy(query_lens))
        buffers.query_start[0] = 0
        buffers.query_start[1 : num_chunks + 1].copy_(torch.from_numpy(np.cumsum(query_lens, dtype=np.int32)))
        return self._run_model(0, num_tokens, query_lens)

    def stamp_swap(self) -> None:
        """Launches what notes that the next step's block copies begin."""
        self._stamp(_SWAPPING)

    # -- steps that only decode ---------------------------------------------------------------------------------

    def decode(self, num_rows: int) -> None:
        """Launches a step that decodes the plan's rows, at most `num_rows`: the others are dead. The same kernels with
        the same arguments whatever the plan says."""
        buffers = self.buffers
        self._state.fetch_plan()
        self._decode_inputs(num_rows)
        hidden = self._model.embed(buffers.input_ids[:num_rows])
        batch = buffers.decode_batch(num_rows)
        hidden = self._model.run_layers(hidden, buffers.positions[:num_rows], batch, self.kv, self._attention)
        self._sample(self._model.compute_logits(hidden, out=self._logits[:num_rows]))
        self._finish(num_rows)

    def decode_logprobs(self, step: int, host: HostState) -> WhoseLogprobs:
        """Launches, behind a step that only decodes, what writes its rows' log-probabilities."""
        rows = np.flatnonzero(host.num_logprobs[host.rows] >= 0)
        slots = host.rows[rows]
        return self._score_sampled(step, 0, self._logits[: host.rows.size], rows, slots, host)

    # -- steps with prompt chunks -------------------------------------------------------------------------------

    def mixed(self, plan: PlanSlot, counts: PlanCounts, host: HostState) -> LaunchedStep:
        """Launches a step that decodes the host's rows and computes the plan's chunks."""
        chunks = plan.chunks[: counts.num_chunks]
        samples = chunks["samples"] == 1
        num_rows, step = counts.num_rows, counts.sequence
        num_results = num_rows + int(np.count_nonzero(samples))
        self._state.fetch_plan()
        self._decode_inputs(num_rows)
        self._chunk_inputs(plan, counts, chunks, samples)
        hidden = self._run_model(num_rows, counts.num_chunk_tokens, chunks["num_tokens"])
        logprobs = []
        num_records = 0
        scores = find_prompt_scores(plan, host.num_prompt_logprobs, num_rows)
        if scores is not None:
            self._score_prompts(step, hidden, scores)
            logprobs.append(WhoseLogprobs(scores.slots, host.generation[scores.slots]))
            num_records = scores.rows.size
        if num_results:
            logits = self._model.compute_logits(hidden.index_select(0, self.buffers.sample_index[:num_results]))
            self._sample(logits)
            slots = np.concatenate([host.rows, chunks["slot"][samples]])
            rows = np.flatnonzero(host.num_logprobs[slots] >= 0)
            if rows.size:
                logprobs.append(self._score_sampled(step, num_records, logits, rows, slots[rows], host))
        self._finish(num_results)
        return LaunchedStep(num_results, logprobs, num_results > 0)

    def _chunk_inputs(
        self, plan: PlanSlot, counts: PlanCounts, chunks: np.ndarray, samples: npt.NDArray[np.bool_]
    ) -> None:
        num_rows, num_tokens = counts.num_rows, counts.num_chunk_tokens
        lengths, starts, slots = chunks["num_tokens"], chunks["start"], chunks["slot"]
        ends = np.cumsum(lengths, dtype=np.int32)
        first = np.repeat(starts - (ends - lengths), lengths)
        packed = self._chunks.send(
            counts.sequence,
            plan.chunk_tokens[:num_tokens],
            np.arange(num_tokens, dtype=np.int32) + first,
            np.repeat(slots, lengths),
            slots, starts + lengths, num_rows + ends,
            (num_rows + ends - 1)[samples], slots[samples], (starts + lengths)[samples],
        )  # fmt: skip
        num_samples = int(np.count_nonzero(samples))
        self._launch_chunk_inputs(packed, num_rows, num_tokens, chunks.size, num_samples)

    def _launch_chunk_inputs(
        self, packed: Tensor, num_rows: int, num_tokens: int, num_chunks: int, num_samples: int
    ) -> None:
        buffers, state, table = self.buffers, self._state, self._state.block_table
        chunk_inputs[(triton.cdiv(max(num_tokens, num_rows + 1), int(LANES.value)),)](
            packed, num_rows, num_tokens, num_chunks, num_samples, table, state.last_token, state.num_tokens,
            buffers.slots, buffers.input_ids, buffers.positions, buffers.slot_mapping, buffers.seq_lens,
            buffers.query_start, buffers.sample_slots, buffers.sample_positions, buffers.sample_index,
            BLOCK_SIZE=self._config.block_size, TABLE_WIDTH=table.shape[1],
        )  # fmt: skip

    def _run_model(self, num_rows: int, num_chunk_tokens: int, query_lens: Int32s) -> Tensor:
        """Hidden states of the step's tokens."""
        buffers, num_tokens = self.buffers, num_rows + num_chunk_tokens
        batch = buffers.mixed_batch(num_rows, query_lens, self._config.max_model_len)
        hidden = self._model.embed(buffers.input_ids[:num_tokens])
        return self._model.run_layers(hidden, buffers.positions[:num_tokens], batch, self.kv, self._attention)

    # -- parts --------------------------------------------------------------------------------------------------

    def _decode_inputs(self, num_rows: int) -> None:
        state, buffers, rings = self._state, self.buffers, self._rings
        decode_inputs[(max(1, triton.cdiv(num_rows, int(LANES.value))),)](
            num_rows, state.rows, state.alive, state.last_token, state.num_tokens, state.block_table, buffers.slots,
            buffers.input_ids, buffers.positions, buffers.slot_mapping, buffers.seq_lens, buffers.sample_slots,
            buffers.sample_positions, rings.stamps, state.step, BLOCK_SIZE=self._config.block_size,
            TABLE_WIDTH=state.block_table.shape[1], NUM_SLOTS=rings.num_slots, STAMP_STRIDE=rings.stamps.stride(0),
            IS_TIMED=self._is_timed,
        )  # fmt: skip

    def _sample(self, logits: Tensor) -> None:
        """Tokens of `logits` [n, vocab], the first n of the step's results."""
        buffers, n = self.buffers, len(logits)
        self._stamp(_SAMPLING)
        slots, tokens = buffers.sample_slots[:n], buffers.tokens[:n]
        self._sampler.sample(logits, slots, self._state.alive, buffers.sample_positions[:n], tokens)

    def _stamp(self, which: int) -> None:
        stamps = self._rings.stamps
        stamp[(1,)](stamps, self._state.step, which, stamps.stride(0), self._rings.num_slots, self._is_timed)

    def _finish(self, num_rows: int) -> None:
        """The step's last kernels, and the only ones that change what a second attempt would read."""
        state, buffers, rings = self._state, self.buffers, self._rings
        self._sampler.observe(buffers.sample_slots[:num_rows], buffers.tokens[:num_rows])
        finish_step[(1,)](
            num_rows, buffers.sample_slots, buffers.sample_positions, buffers.tokens, state.admissions, state.alive,
            state.last_token, state.num_tokens, rings.results, state.step, rings.stamps,
            SLOT_WORDS=rings.results.stride(0), NUM_SLOTS=rings.num_slots, STAMP_STRIDE=rings.stamps.stride(0),
            ROWS_AT=rings.result_rows_at, LANES=self._lanes, IS_TIMED=self._is_timed,
        )  # fmt: skip

    def _score_sampled(
        self,
        step: int,
        start: int,
        logits: Tensor,
        rows: npt.NDArray[np.int64],
        slots: Int32s,
        host: HostState,
    ) -> WhoseLogprobs:
        """Log-probabilities of the tokens that the step's result `rows` have just got, in records from `start` on."""
        sent = self._asked.send(step, rows, host.num_logprobs[slots])
        index, num_top = sent[: rows.size], sent[rows.size :]
        chosen = logits if rows.size == len(logits) else logits.index_select(0, index)
        targets, positions = (
            rows_of.index_select(0, index) for rows_of in (self.buffers.tokens, self.buffers.sample_positions)
        )
        records = self._rings.logprobs(step)[start : start + rows.size]
        self._sampler.score(chosen, targets, positions, num_top, records)
        return WhoseLogprobs(slots, host.generation[slots])

    def _score_prompts(self, step: int, hidden: Tensor, scores: PromptScores) -> None:
        n, records = scores.rows.size, self._rings.logprobs(step)
        arrays = scores.rows, scores.targets, scores.positions, scores.num_top
        rows, targets, positions, num_top = self._scores.send(step, *arrays).view(4, n)
        for start in range(0, n, SCORED_ROWS):
            part = slice(start, min(start + SCORED_ROWS, n))
            logits = self._model.compute_logits(hidden.index_select(0, rows[part]))
            self._sampler.score(logits, targets[part], positions[part], num_top[part], records[part])
