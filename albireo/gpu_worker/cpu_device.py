"""The CPU as a device: one step from plan slot to token slot, synchronously."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from albireo.config import WorkerConfig
from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.cpu import make_attention
from albireo.gpu_worker.device_state import DeviceState
from albireo.gpu_worker.kv_cache import KVCache
from albireo.gpu_worker.loader import TORCH_DTYPES, load_model
from albireo.gpu_worker.sampling.cpu import CpuSampler
from albireo.gpu_worker.sampling.stop import check_stop
from albireo.gpu_worker.step_inputs import StepInputs, build_inputs
from albireo.messages import Finish
from albireo.shm.plan_ring import PlanSlot
from albireo.shm.token_ring import TokenSlot

Int32s = npt.NDArray[np.int32]


class CpuDevice:
    """Model, KV cache and request state of one rank."""

    name = "cpu"

    def __init__(self, config: WorkerConfig, report: Callable[[str, float], None]) -> None:
        torch.set_num_threads(config.num_threads)
        self._block_size = config.scheduler.block_size
        model, dtype = config.model, TORCH_DTYPES[config.dtype]
        attention = make_attention(dtype, model.num_heads, model.num_kv_heads, model.head_dim, self._block_size)
        self._model = load_model(config, attention, report)
        self._kv_cache = KVCache.allocate(model, config.dtype, self._block_size, config.kv_cache_bytes)
        self._sampler = CpuSampler(model.vocab_size)
        self.state = DeviceState(config.scheduler)
        report("preparing kernels", 1.0)
        self._sampler.warm_up(dtype)
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
        """Runs one step: applies the plan, computes, samples, writes the rows of `result`."""
        state = self.state
        state.apply(plan)
        inputs = build_inputs(plan, state, self._block_size)
        rows = result.rows[: inputs.result_slots.size]
        rows["slot"] = inputs.result_slots
        rows["generation"] = state.generation[inputs.result_slots]
        rows["token"] = -1
        rows["finish"] = Finish.NONE
        if inputs.input_ids.numel():
            hidden = self._model.forward(inputs.input_ids, inputs.positions, inputs.batch, self._kv_cache)
            if inputs.sampled_slots.size:
                rows["token"][inputs.live], rows["finish"][inputs.live] = self._sample(hidden, inputs)
        result.header["num_rows"] = rows.size

    def _sample(self, hidden: torch.Tensor, inputs: StepInputs) -> tuple[Int32s, Int32s]:
        """Next tokens of the sampled rows and their `Finish`, both int32 [num_sampled]; updates the state."""
        if len(inputs.sampled_tokens) != len(hidden):
            hidden = hidden[torch.from_numpy(inputs.sampled_tokens)]
        logits, state = self._model.compute_logits(hidden), self.state
        slots = torch.from_numpy(inputs.sampled_slots)
        out = torch.empty(len(slots), dtype=torch.int32)
        self._sampler.sample(logits, slots, torch.from_numpy(inputs.sampled_positions), state.sampling, out)
        tokens: Int32s = out.numpy()
        finish = check_stop(tokens, inputs.sampled_slots, state.stop_ids, state.num_eos_ids, state.num_stop_ids)
        num_tokens = (inputs.sampled_positions + 1).astype(np.int32)
        state.advance(inputs.sampled_slots, tokens, num_tokens, finish != Finish.NONE)
        return tokens, finish
