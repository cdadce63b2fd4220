"""The CPU as a device: one step from plan slot to token slot, synchronously."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from albireo.checkpoint.shard import shard_model
from albireo.config import WorkerConfig
from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.cpu import make_attention
from albireo.gpu_worker.collectives.interface import Collectives
from albireo.gpu_worker.cpu_backend import CpuBackend
from albireo.gpu_worker.decode_program import DecodePrograms
from albireo.gpu_worker.device_state import DeviceState
from albireo.gpu_worker.grammar_gate import GrammarGate
from albireo.gpu_worker.kv_cache import KVCache
from albireo.gpu_worker.loader import TORCH_DTYPES, load_model
from albireo.gpu_worker.prompt_scores import PromptScores, find_prompt_scores
from albireo.gpu_worker.result_rows import ResultRows
from albireo.gpu_worker.sampling.modes import make_step_sampler
from albireo.gpu_worker.sampling.stop import check_stop
from albireo.gpu_worker.step_inputs import StepInputs, StepRows, build_inputs, decode_rows
from albireo.gpu_worker.swap_space import HostSwapSpace
from albireo.messages import WAITED, Finish
from albireo.shm.flight import Part, Recorder
from albireo.shm.grammar_masks import GrammarMasks, MaskTable
from albireo.shm.plan_ring import PlanSlot
from albireo.shm.token_ring import TokenSlot

Int32s = npt.NDArray[np.int32]


SCORED_ROWS = 128
"""Positions whose prompt logprobs are computed at a time: 2,048 rows of a large vocabulary would be a gigabyte."""


class CpuDevice:
    """One rank's share of model, KV cache and sampling, and the request state, which every rank has in full."""

    name = "cpu"

    def __init__(
        self,
        config: WorkerConfig,
        collectives: Collectives,
        beat: Callable[[], None],
        report: Callable[[str, float], None],
        recorder: Recorder,
        heartbeat_address: int = 0,
    ) -> None:
        """`beat` renews the rank's heartbeat: called once a layer and before logits are computed. Captured steps count
        the int64 at `heartbeat_address` up instead."""
        self._beat = beat
        self._recorder = recorder
        torch.set_num_threads(config.num_threads)
        self._block_size = config.scheduler.block_size
        shard, dtype = shard_model(config.model, config.rank, config.num_workers), TORCH_DTYPES[config.dtype]
        local = shard.local(config.model)
        attention = make_attention(dtype, local.num_heads, local.num_kv_heads, local.head_dim, self._block_size)
        self._model = load_model(config, shard, attention, collectives, report, CpuBackend())
        self._model.on_layer = beat
        self._kv_cache = KVCache.allocate(local, config.dtype, self._block_size, config.kv_cache_bytes)
        self._swap = HostSwapSpace(self._kv_cache, local, dtype, config.scheduler, beat)
        masks = _attach_masks(config)
        self.state = DeviceState(config.scheduler, None if masks is None else masks.masks)
        table = self.state.sampling
        self._gate = masks and GrammarGate(masks, table.has_grammar, self.state.generation, collectives, beat)
        self._result_rows = ResultRows(self.state)
        report("preparing kernels", 1.0)
        self._sampler = make_step_sampler(
            config.sampling_mode, shard, config.model.vocab_size, collectives, self.state.sampling, dtype
        )
        self._programs = DecodePrograms(
            self._model, self._kv_cache, self.state, config.scheduler.max_num_seqs, heartbeat_address
        )
        self._warm_up(num_tokens=1)
        self._warm_up(num_tokens=self._block_size)

    @property
    def num_kv_blocks(self) -> int:
        return self._kv_cache.num_blocks

    @torch.inference_mode()
    def _warm_up(self, num_tokens: int) -> None:
        """Runs the model over one sequence in block 0, which nobody owns yet: the first request finds kernels loaded
        and weights in memory."""
        positions = torch.arange(num_tokens)
        batch = AttentionBatch(
            block_table=self.state.block_table_tensor,
            slots=torch.zeros(1, dtype=torch.int32),
            query_start=torch.tensor([0, num_tokens], dtype=torch.int32),
            seq_lens=torch.tensor([num_tokens], dtype=torch.int32),
            slot_mapping=positions,
            num_decodes=int(num_tokens == 1),
            max_query_len=num_tokens,
            max_seq_len=num_tokens,
        )
        hidden = self._model.forward(torch.zeros(num_tokens, dtype=torch.int64), positions, batch, self._kv_cache)
        self._model.compute_logits(hidden[-1:])

    @torch.inference_mode()
    def execute(self, plan: PlanSlot, result: TokenSlot) -> None:
        """Runs one step: applies the plan, computes, samples, writes `result`."""
        state, recorder = self.state, self._recorder
        state.apply(plan)
        applied_ns = recorder.mark(Part.FETCH_PLAN)
        if self._swap.copy(plan):
            result.header["swap_ns"] = recorder.mark(Part.SWAP) - applied_ns
        result.header["num_logprobs"] = 0
        rows, inputs = self._prepare(plan)
        sampled = None
        result.header["begin_ns"] = end_ns = recorder.mark(Part.INPUT_PREP)
        logits = self._programs.run(rows.slots) if inputs is None else self._compute_logits(plan, inputs, result)
        if logits is not None:
            recorder.mark(Part.FORWARD)
            sampled = self._sample(logits, rows, inputs, plan.counts().sampling_slice, result)
        if inputs is None or inputs.input_ids.numel():
            end_ns = recorder.mark(Part.FORWARD if sampled is None else Part.SAMPLE)
        result.header["end_ns"] = end_ns
        self._result_rows.write(result, rows, sampled)

    def _prepare(self, plan: PlanSlot) -> tuple[StepRows, StepInputs | None]:
        """The step's rows, and its inputs unless a program makes them itself."""
        if not plan.counts().num_chunks:
            rows = decode_rows(self.state)
            if self._programs.fit(rows.slots.size):
                return rows, None
        inputs = build_inputs(plan, self.state, self._block_size)
        return inputs.rows, inputs

    def _compute_logits(self, plan: PlanSlot, inputs: StepInputs, result: TokenSlot) -> torch.Tensor | None:
        """Of the rows that sample, if any do; scores prompt tokens on the way."""
        if not inputs.input_ids.numel():
            return None
        hidden = self._model.forward(inputs.input_ids, inputs.positions, inputs.batch, self._kv_cache)
        scores = find_prompt_scores(plan, self.state.num_prompt_logprobs, inputs.batch.num_decodes)
        if scores is not None:
            self._score(hidden, scores, result)
        if not inputs.rows.slots.size:
            return None
        if len(inputs.sampled_tokens) != len(hidden):
            hidden = hidden[torch.from_numpy(inputs.sampled_tokens)]
        self._beat()
        return self._model.compute_logits(hidden)

    def _sample(
        self, logits: torch.Tensor, rows: StepRows, inputs: StepInputs | None, sampling_slice: int, result: TokenSlot
    ) -> tuple[Int32s, Int32s]:
        """Next tokens of the sampled rows and their `Finish`, both int32 [num_sampled]; updates the state. Rows that
        wait for their grammar's mask are sampled too, for nothing: leaving them out would take a copy of the logits."""
        state, slots, table = self.state, rows.slots, self.state.sampling
        is_open = self._gate.open_rows(slots, rows.positions) if self._gate else None
        sampled = self._sampler.sample(logits, slots, rows.positions, sampling_slice)
        tokens = sampled.tokens
        finish = check_stop(tokens, slots, table.stop_ids, table.num_eos_ids, table.num_stop_ids)
        if sampled.logprobs.size:
            self._write_row_logprobs(sampled.logprobs, rows, is_open, result)
        if is_open is None:
            table.observe(slots, tokens)
            state.advance(slots, tokens, (rows.positions + 1).astype(np.int32), finish != Finish.NONE)
            return tokens, finish
        if inputs is not None:  # a prompt that ends here is from now on a row whose last token is to be computed again
            last = inputs.input_ids.numpy()[inputs.sampled_tokens]
            state.last_token[slots], state.num_tokens[slots] = last, rows.positions
        going, taken = slots[is_open], tokens[is_open]
        table.observe(going, taken)
        state.advance(going, taken, (rows.positions[is_open] + 1).astype(np.int32), finish[is_open] != Finish.NONE)
        return np.where(is_open, tokens, np.int32(WAITED)), np.where(is_open, finish, np.int32(Finish.NONE))

    def _write_row_logprobs(
        self, records: npt.NDArray[Any], rows: StepRows, is_open: npt.NDArray[np.bool_] | None, result: TokenSlot
    ) -> None:
        """`records`: of the rows that asked."""
        asked = self.state.sampling.num_logprobs[rows.slots] >= 0
        if is_open is not None:
            records = records[is_open[asked]]
            asked &= is_open
        self._write_logprobs(records, rows.slots[asked], rows.positions[asked], result)

    def _score(self, hidden: torch.Tensor, scores: PromptScores, result: TokenSlot) -> None:
        for start in range(0, scores.rows.size, SCORED_ROWS):
            part = slice(start, start + SCORED_ROWS)
            self._beat()
            logits = self._model.compute_logits(hidden[torch.from_numpy(scores.rows[part])])
            records = self._sampler.score(logits, scores.targets[part], scores.num_top[part])
            self._write_logprobs(records, scores.slots[part], scores.positions[part], result)

    def _write_logprobs(
        self, records: npt.NDArray[Any], slots: Int32s, positions: npt.NDArray[Any], result: TokenSlot
    ) -> None:
        """Appends LOGPROB [n] to the step's results."""
        start = int(result.header["num_logprobs"][0])
        out = result.logprobs[start : start + records.size]
        out[:] = records
        out["slot"], out["generation"], out["position"] = slots, self.state.generation[slots], positions
        result.header["num_logprobs"] = start + records.size


def _attach_masks(config: WorkerConfig) -> MaskTable | None:
    if config.segments.grammar < 0:
        return None
    return GrammarMasks(config.scheduler.num_slots, config.model.vocab_size).attach(config.segments.grammar)
