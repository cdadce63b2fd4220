"""A step's arrays, in fixed places, as captured steps need them: made once for the largest step."""

import numpy as np
import numpy.typing as npt
import torch

from albireo.config import SchedulerConfig
from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.cuda.runtime import Runtime
from albireo.gpu_worker.cuda.state import CudaState

Int32s = npt.NDArray[np.int32]


class StepBuffers:
    """Tokens are in the order of the batch: decode rows, one each, then prompt chunks. `sample_*` are in the order of
    the results: decode rows, then chunks that end their prompt."""

    def __init__(self, config: SchedulerConfig, state: CudaState, runtime: Runtime) -> None:
        device, rows = runtime.device, config.max_num_seqs
        # a captured step's number of rows is rounded up, which may be past both
        tokens = max(config.max_num_batched_tokens, rows)

        def zeros(count: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(count, dtype=dtype, device=device)

        self.input_ids = zeros(tokens)
        self.positions = zeros(tokens, torch.int64)
        self.slot_mapping = zeros(tokens, torch.int64)
        self.slots = zeros(rows)
        self.seq_lens = zeros(rows)
        self.query_start = zeros(rows + 1)
        self.sample_slots = zeros(rows)
        self.sample_positions = zeros(rows)
        self.sample_index = zeros(rows, torch.int64)
        self.tokens = zeros(rows)
        self._one_each = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._block_table = state.block_table
        self._longest = config.max_model_len

    def decode_batch(self, num_rows: int) -> AttentionBatch:
        """Of a step that only decodes, its sequences of whatever length."""
        return AttentionBatch(
            block_table=self._block_table,
            slots=self.slots[:num_rows],
            query_start=self._one_each[: num_rows + 1],
            seq_lens=self.seq_lens[:num_rows],
            slot_mapping=self.slot_mapping[:num_rows],
            num_decodes=num_rows,
            max_query_len=1,
            max_seq_len=self._longest,
        )

    def mixed_batch(self, num_rows: int, query_lens: Int32s, longest: int) -> AttentionBatch:
        """Of a step with chunks of `query_lens` tokens; `longest`: no sequence of the step is longer."""
        num_seqs, num_tokens = num_rows + query_lens.size, num_rows + int(query_lens.sum())
        return AttentionBatch(
            block_table=self._block_table,
            slots=self.slots[:num_seqs],
            query_start=self.query_start[: num_seqs + 1],
            seq_lens=self.seq_lens[:num_seqs],
            slot_mapping=self.slot_mapping[:num_tokens],
            num_decodes=num_rows,
            max_query_len=int(query_lens.max(initial=1)),
            max_seq_len=longest,
        )


class Staging:
    """What the host has packed for a step, on its way to the device: int32 arrays, one behind the other.

    A place for every step that may be in flight, on the host and on the device: none is written while it is in use.
    """

    def __init__(self, num_steps: int, size: int, runtime: Runtime) -> None:
        self._host = runtime.shared_zeros(num_steps, size)
        self._host_arrays: Int32s = self._host.numpy()
        self._device = torch.zeros(num_steps, size, dtype=torch.int32, device=runtime.device)
        self._num_steps = num_steps
        self._runtime = runtime

    def send(self, step: int, *arrays: npt.NDArray[np.integer]) -> torch.Tensor:
        """Launches the copy; returns the arrays' contents on the device, int32 [their sizes' sum], for what is launched
        from now on for this step."""
        index, size = step % self._num_steps, sum(array.size for array in arrays)
        if not size:
            return self._device[index, :0]
        np.concatenate(arrays, out=self._host_arrays[index, :size], casting="same_kind")
        self._runtime.send(self._device[index].data_ptr(), self._host[index].data_ptr(), 4 * size)
        self._runtime.wait_for_sent()
        return self._device[index, :size]
