"""Decode steps of a few rows as one call: the model's kernels captured once for each number of rows, then replayed.

The CPU's counterpart of a captured CUDA graph: inputs are copied to fixed places, one program runs (`kernels.program`),
logits lie in a fixed place. The same kernels run with the same arguments, so the bits are those of the plain way.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.cpu import CpuAttention
from albireo.gpu_worker.kernels.launch import capture
from albireo.gpu_worker.kernels.program import Program
from albireo.gpu_worker.kernels.skinny_product import MAX_ROWS
from albireo.gpu_worker.kv_cache import KVCache
from albireo.gpu_worker.models.decoder import DecoderModel
from albireo.gpu_worker.step_inputs import StepInputs

_HARMLESS: Final = {
    "__get__", "__getitem__", "contiguous", "data_ptr", "element_size", "empty", "empty_like", "is_contiguous",
    "numel", "stride", "view",
}  # fmt: skip
"""What torch may do during a capture: give memory, and look at it another way. Anything else would be left out."""


class NotCapturableError(Exception):
    """The model computes with something else than kernels."""


class _KeepTensors(TorchFunctionMode):
    """Keeps every tensor that is made: a program writes to their memory again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__ not in _HARMLESS:
            raise NotCapturableError(f"torch.{func.__name__}")
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.tensors.append(result)
        return result


class DecodeProgram:
    """A decode step of exactly `num_rows` sequences, however long they are."""

    def __init__(
        self, model: DecoderModel, kv: KVCache, attention: CpuAttention, block_table: Tensor, num_rows: int
    ) -> None:
        """Captures; nothing is computed. `attention` is the programs' own, its scratch is theirs. Raises
        NotCapturableError."""
        self._hidden = torch.zeros(num_rows, model.config.hidden_size, dtype=model.dtype)
        self._positions = torch.zeros(num_rows, dtype=torch.int64)
        self._slot_mapping = torch.zeros(num_rows, dtype=torch.int64)
        self._slots = torch.zeros(num_rows, dtype=torch.int32)
        longest = block_table.shape[1] * kv.block_size
        self._seq_lens = torch.zeros(num_rows, dtype=torch.int32)
        batch = AttentionBatch(
            block_table=block_table,
            slots=self._slots,
            query_start=torch.arange(num_rows + 1, dtype=torch.int32),
            seq_lens=self._seq_lens,
            slot_mapping=self._slot_mapping,
            num_decodes=num_rows,
            max_query_len=1,
            max_seq_len=longest,
        )
        with capture() as calls, _KeepTensors() as kept:
            hidden = model.run_layers(self._hidden, self._positions, batch, kv, attention)
            self._logits = model.compute_logits(hidden)
        self._kept = (batch, kept.tensors)
        self._program = Program(calls, torch.get_num_threads())
        self._model = model

    def run(self, inputs: StepInputs) -> Tensor:
        """Logits `[num_rows, vocab]`, valid until the next run."""
        batch = inputs.batch
        self._model.embed(inputs.input_ids, out=self._hidden)
        self._positions.copy_(inputs.positions)
        self._slot_mapping.copy_(batch.slot_mapping)
        self._slots.copy_(batch.slots)
        self._seq_lens.copy_(batch.seq_lens)
        self._program()
        return self._logits


class DecodePrograms:
    """Programs for 1 to `MAX_ROWS` rows, or none where the model is not made of kernels alone."""

    def __init__(self, model: DecoderModel, kv: KVCache, block_table: Tensor) -> None:
        self._programs: list[DecodeProgram] = []
        if not model.is_capturable:
            return
        attention = CpuAttention(model.dtype, torch.get_num_threads())
        # the largest first: scratch that grew later would move
        for num_rows in range(MAX_ROWS, 0, -1):
            self._programs.insert(0, DecodeProgram(model, kv, attention, block_table, num_rows))

    def run(self, inputs: StepInputs) -> Tensor | None:
        """Logits of a step that only decodes, `[num_rows, vocab]`, valid until the next run; None for a step that no
        program fits."""
        num_rows = inputs.batch.num_decodes
        if not 0 < num_rows <= len(self._programs) or inputs.input_ids.shape[0] != num_rows:
            return None
        return self._programs[num_rows - 1].run(inputs)
