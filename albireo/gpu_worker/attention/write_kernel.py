"""Copy a step's keys and values into their pages, from wherever the projection left them."""

from typing import Any, Final

import numpy as np
from numba import carray

from albireo.gpu_worker.kernels.simd import copy, fetch_add, pointer

TOKENS_PER_ITEM: Final = 32

WRITE_ARGUMENTS = np.dtype(
    [
        ("counters", "<i8"),  # int64[2], 0: not used, items taken
        ("keys", "<i8"),
        ("key_token_stride", "<i8"),
        ("key_head_stride", "<i8"),
        ("values", "<i8"),
        ("value_token_stride", "<i8"),
        ("value_head_stride", "<i8"),
        ("k_cache", "<i8"),
        ("v_cache", "<i8"),
        ("block_size", "<i8"),
        ("num_kv_heads", "<i8"),
        ("head_dim", "<i8"),  # a multiple of 16
        ("slot_mapping", "<i8"),
        ("num_tokens", "<i8"),
    ]
)
"""Addresses and sizes; strides are in elements."""


def write_kernel(element: type[np.generic]) -> Any:
    """The kernel for pages of `element`: np.uint16 for bf16, or np.float32."""

    def write_pages(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        keys, values = pointer(a.keys, element), pointer(a.values, element)
        k_cache, v_cache = pointer(a.k_cache, element), pointer(a.v_cache, element)
        slot_mapping = pointer(a.slot_mapping, np.int64)
        while True:
            first = fetch_add(a.counters + 8, 1) * TOKENS_PER_ITEM
            if first >= a.num_tokens:
                return
            for token in range(first, min(first + TOKENS_PER_ITEM, a.num_tokens)):
                slot = slot_mapping[token]
                if slot < 0:
                    continue
                block = slot // a.block_size
                for head in range(a.num_kv_heads):
                    row = (block * a.num_kv_heads + head) * a.block_size + slot - block * a.block_size
                    key = token * a.key_token_stride + head * a.key_head_stride
                    value = token * a.value_token_stride + head * a.value_head_stride
                    for d in range(0, a.head_dim, 16):
                        copy(k_cache, row * a.head_dim + d, keys, key + d)
                        copy(v_cache, row * a.head_dim + d, values, value + d)

    return write_pages
