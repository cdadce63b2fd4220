"""Decode steps as one call: the model's kernels captured once for each number of rows, then replayed.

The CPU's counterpart of a captured CUDA graph: one program (`kernels.program`) makes its inputs from the request state
and leaves logits in a fixed place. The same kernels run with the same arguments: the bits are those of the plain way.
"""

import torch
from torch import Tensor

from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.cpu import CpuAttention
from albireo.gpu_worker.capture_memory import CapturePool, CaptureTensors
from albireo.gpu_worker.cpu_backend import is_capturable
from albireo.gpu_worker.device_state import DeviceState
from albireo.gpu_worker.kernels.decode_inputs import decode_inputs_kernel
from albireo.gpu_worker.kernels.launch import capture
from albireo.gpu_worker.kernels.program import Program
from albireo.gpu_worker.kernels.skinny_product import max_rows as most_kernel_rows
from albireo.gpu_worker.kv_cache import KVCache
from albireo.gpu_worker.models.decoder import DecoderModel
from albireo.gpu_worker.step_inputs import Int32s


class StepBuffers:
    """What the calls of a program hand on beside hidden states: a program of n rows uses the first n."""

    def __init__(self, model: DecoderModel, state: DeviceState, block_size: int, max_rows: int) -> None:
        self._model = model
        self._state = state
        self._block_size = block_size
        self.longest = state.block_table.shape[1] * block_size
        self.slots = torch.zeros(max_rows, dtype=torch.int32)
        self.hidden = torch.zeros(max_rows, model.config.hidden_size, dtype=model.dtype)
        self.positions = torch.zeros(max_rows, dtype=torch.int64)
        self.logits = torch.zeros(max_rows, model.vocab_width, dtype=model.dtype)
        self._slot_mapping = torch.zeros(max_rows, dtype=torch.int64)
        self._seq_lens = torch.zeros(max_rows, dtype=torch.int32)
        self._query_start = torch.arange(max_rows + 1, dtype=torch.int32)

    def batch(self, num_rows: int) -> AttentionBatch:
        """A decode step of `num_rows` sequences, of whatever length."""
        return AttentionBatch(
            block_table=self._state.block_table_tensor,
            slots=self.slots[:num_rows],
            query_start=self._query_start[: num_rows + 1],
            seq_lens=self._seq_lens[:num_rows],
            slot_mapping=self._slot_mapping[:num_rows],
            num_decodes=num_rows,
            max_query_len=1,
            max_seq_len=self.longest,
        )

    def fill(self, num_rows: int) -> None:
        """The kernel's call that fills everything from `slots` and the state."""
        state, embedding = self._state, self._model.embedding_table
        decode_inputs_kernel()(
            (
                num_rows, self.slots.data_ptr(), state.num_tokens.ctypes.data, state.last_token.ctypes.data,
                state.block_table.ctypes.data, state.block_table.shape[1], self._block_size, embedding.data_ptr(),
                embedding.stride(0) * embedding.element_size(), self.positions.data_ptr(), self._seq_lens.data_ptr(),
                self._slot_mapping.data_ptr(), self.hidden.data_ptr(),
            ),
            num_threads=1,
        )  # fmt: skip


class DecodePrograms:
    """A program for each number of rows that our product kernel takes, captured when it is first needed (some
    milliseconds); none where the model is not made of kernels alone."""

    def __init__(
        self, model: DecoderModel, kv: KVCache, state: DeviceState, max_rows: int, heartbeat_address: int = 0
    ) -> None:
        """`max_rows`: of any step. `state`'s arrays stay where they are. `heartbeat_address`: as of `Program`."""
        self._heartbeat_address = heartbeat_address
        self._model = model
        self._kv = kv
        self._max_rows = min(max_rows, most_kernel_rows()) if is_capturable(model) else 0
        self._programs: dict[int, Program] = {}
        """By number of rows."""
        self._pool = CapturePool()
        self._buffers = StepBuffers(model, state, kv.block_size, self._max_rows)
        self._slots = self._buffers.slots.numpy()
        if self._max_rows:
            # the programs' own: its scratch grows in captures only, and stays there. The largest step comes first
            self._attention = CpuAttention(model.dtype, torch.get_num_threads())
            self._capture(self._max_rows)

    def fit(self, num_rows: int) -> bool:
        """Whether there is a program for a step that decodes so many rows and nothing else."""
        return 0 < num_rows <= self._max_rows

    def run(self, slots: Int32s) -> Tensor:
        """The step in which the sequences in `slots`, all of them alive, get their next token: logits
        `[num_rows, vocab]`, valid until the next run."""
        num_rows = slots.size
        program = self._programs.get(num_rows) or self._capture(num_rows)
        self._slots[:num_rows] = slots
        program()
        return self._buffers.logits[:num_rows]

    def _capture(self, num_rows: int) -> Program:
        """Notes the calls of a step of `num_rows` rows; nothing is computed."""
        buffers = self._buffers
        batch = buffers.batch(num_rows)
        hidden, positions = buffers.hidden[:num_rows], buffers.positions[:num_rows]
        with capture() as calls, CaptureTensors(self._pool):
            buffers.fill(num_rows)
            hidden = self._model.run_layers(hidden, positions, batch, self._kv, self._attention)
            self._model.compute_logits(hidden, out=buffers.logits[:num_rows])
        program = self._programs[num_rows] = Program(calls, torch.get_num_threads(), self._heartbeat_address)
        return program
