"""A decode step's inputs, from the request state that every step leaves behind: the first call of a program."""

from functools import cache
from typing import Any, Final

import numpy as np
from numba import carray

from albireo.gpu_worker.collectives.atomics import copy_bytes
from albireo.gpu_worker.kernels.launch import Kernel
from albireo.gpu_worker.kernels.simd import pointer

DECODE_INPUTS: Final = np.dtype(
    [
        ("num_rows", "<i8"),
        ("slots", "<i8"),  # int32 [num_rows]: request slot of each row
        ("num_tokens", "<i8"),  # int32 [num_slots]
        ("last_token", "<i8"),  # int32 [num_slots]
        ("block_table", "<i8"),  # int32 [num_slots, table_stride]
        ("table_stride", "<i8"),
        ("block_size", "<i8"),
        ("embedding", "<i8"),  # [vocab_size, row_bytes]
        ("row_bytes", "<i8"),
        ("positions", "<i8"),  # from here on the outcome: int64 [num_rows]
        ("seq_lens", "<i8"),  # int32 [num_rows]
        ("slot_mapping", "<i8"),  # int64 [num_rows]
        ("hidden", "<i8"),  # [num_rows, row_bytes]
    ]
)
"""As `step_inputs.StepInputs` and `AttentionBatch` say; the hidden states are the tokens' embeddings."""


@cache
def decode_inputs_kernel() -> Kernel:
    """For rows that are alive. On one thread: a row is a few loads and its embedding's copy."""

    def decode_inputs(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        slots, num_tokens = pointer(a.slots, np.int32), pointer(a.num_tokens, np.int32)
        last_token, block_table = pointer(a.last_token, np.int32), pointer(a.block_table, np.int32)
        positions, seq_lens = pointer(a.positions, np.int64), pointer(a.seq_lens, np.int32)
        slot_mapping = pointer(a.slot_mapping, np.int64)
        for row in range(a.num_rows):
            slot = np.int64(slots[row])
            length = num_tokens[slot]
            position = np.int64(length) - 1
            block = np.int64(block_table[slot * a.table_stride + position // a.block_size])
            seq_lens[row] = length
            positions[row] = position
            slot_mapping[row] = block * a.block_size + position % a.block_size
            token = np.int64(last_token[slot])
            copy_bytes(a.hidden + row * a.row_bytes, a.embedding + token * a.row_bytes, a.row_bytes)

    return Kernel(decode_inputs, DECODE_INPUTS)
