"""Decode steps of a few rows as one call: the model's kernels captured once for each number of rows, then replayed.

The CPU's counterpart of a captured CUDA graph: inputs are copied to fixed places, one program runs (`kernels.program`),
logits lie in a fixed place. The same kernels run with the same arguments, so the bits are those of the plain way.
"""

import torch
from torch import Tensor

from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.cpu import CpuAttention
from albireo.gpu_worker.capture_memory import CapturePool, CaptureTensors
from albireo.gpu_worker.kernels.launch import capture
from albireo.gpu_worker.kernels.program import Program
from albireo.gpu_worker.kernels.skinny_product import MAX_ROWS
from albireo.gpu_worker.kv_cache import KVCache
from albireo.gpu_worker.models.decoder import DecoderModel
from albireo.gpu_worker.step_inputs import StepInputs


class StepBuffers:
    """Where programs find their inputs and leave their logits: a program of n rows uses the first n."""

    def __init__(self, model: DecoderModel, block_table: Tensor, max_rows: int) -> None:
        self.block_table = block_table
        self.hidden = torch.zeros(max_rows, model.config.hidden_size, dtype=model.dtype)
        self.positions = torch.zeros(max_rows, dtype=torch.int64)
        self.slot_mapping = torch.zeros(max_rows, dtype=torch.int64)
        self.slots = torch.zeros(max_rows, dtype=torch.int32)
        self.seq_lens = torch.zeros(max_rows, dtype=torch.int32)
        self.query_start = torch.arange(max_rows + 1, dtype=torch.int32)

    def batch(self, num_rows: int, longest: int) -> AttentionBatch:
        """A decode step of `num_rows` sequences of up to `longest` tokens."""
        return AttentionBatch(
            block_table=self.block_table,
            slots=self.slots[:num_rows],
            query_start=self.query_start[: num_rows + 1],
            seq_lens=self.seq_lens[:num_rows],
            slot_mapping=self.slot_mapping[:num_rows],
            num_decodes=num_rows,
            max_query_len=1,
            max_seq_len=longest,
        )

    def fill(self, inputs: StepInputs) -> None:
        """All but the hidden states."""
        batch, num_rows = inputs.batch, inputs.batch.num_decodes
        self.positions[:num_rows] = inputs.positions
        self.slot_mapping[:num_rows] = batch.slot_mapping
        self.slots[:num_rows] = batch.slots
        self.seq_lens[:num_rows] = batch.seq_lens


class DecodePrograms:
    """A program for each number of rows up to `MAX_ROWS`, captured when it is first needed (some milliseconds); none
    where the model is not made of kernels alone."""

    def __init__(self, model: DecoderModel, kv: KVCache, block_table: Tensor, max_rows: int) -> None:
        """`block_table` int32 `[num_slots, max_blocks_per_seq]` stays where it is; `max_rows`: of any step."""
        self._model = model
        self._kv = kv
        self._max_rows = min(max_rows, MAX_ROWS) if model.is_capturable else 0
        self._programs: dict[int, tuple[Program, Tensor]] = {}
        """By number of rows, with where its logits lie."""
        self._buffers = StepBuffers(model, block_table, self._max_rows)
        self._pool = CapturePool()
        self._longest = block_table.shape[1] * kv.block_size
        if self._max_rows:
            # the programs' own, whose scratch must not grow once it is captured: the largest step comes first
            self._attention = CpuAttention(model.dtype, torch.get_num_threads())
            self._capture(self._max_rows)

    def run(self, inputs: StepInputs) -> Tensor | None:
        """Logits of a step that only decodes, `[num_rows, vocab]`, valid until the next run; None for a step that no
        program fits."""
        num_rows = inputs.batch.num_decodes
        if not 0 < num_rows <= self._max_rows or inputs.input_ids.shape[0] != num_rows:
            return None
        program, logits = self._programs.get(num_rows) or self._capture(num_rows)
        self._buffers.fill(inputs)
        self._model.embed(inputs.input_ids, out=self._buffers.hidden[:num_rows])
        program()
        return logits

    def _capture(self, num_rows: int) -> tuple[Program, Tensor]:
        """Notes the calls of a step of `num_rows` rows; nothing is computed."""
        buffers = self._buffers
        batch = buffers.batch(num_rows, self._longest)
        hidden, positions = buffers.hidden[:num_rows], buffers.positions[:num_rows]
        with capture() as calls, CaptureTensors(self._pool):
            hidden = self._model.run_layers(hidden, positions, batch, self._kv, self._attention)
            logits = self._model.compute_logits(hidden)
        captured = self._programs[num_rows] = (Program(calls, torch.get_num_threads()), logits)
        return captured
