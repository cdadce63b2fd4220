"""Between a layer's first product and its attention, in one pass: queries and keys normalised per head and rotated,
keys and values into their pages.

Arithmetic as in `elementwise`: fp32, rounded once when stored, a row's bits the same in any batch.
"""

from functools import cache
from typing import Any, Final

import numpy as np
from numba import carray, njit

from albireo.gpu_worker.kernels.elementwise import ONE, inverse_rms
from albireo.gpu_worker.kernels.launch import INLINED, Kernel
from albireo.gpu_worker.kernels.simd import (
    add,
    copy,
    fetch_add,
    load,
    multiply,
    pointer,
    prefetch,
    splat,
    store,
    subtract,
)

ROTATE_ARGUMENTS: Final = np.dtype(
    [
        ("counter", "<i8"),  # int64, 0 at first: rows that threads have taken
        ("chunk", "<i8"),  # rows that a thread takes at a time
        ("rows", "<i8"),
        ("num_heads", "<i8"),
        ("num_kv_heads", "<i8"),
        ("qkv", "<i8"),  # [rows, (num_heads + 2 * num_kv_heads) * head_dim], contiguous
        ("query", "<i8"),  # out [rows, num_heads, head_dim]
        ("k_cache", "<i8"),  # out [num_blocks, num_kv_heads, block_size, head_dim]
        ("v_cache", "<i8"),  # the same
        ("block_size", "<i8"),
        ("slot_mapping", "<i8"),  # int64 [rows]: block * block_size + offset, -1 stores nothing
        ("weight", "<i8"),  # [num_heads + num_kv_heads, head_dim]
        ("table", "<i8"),  # fp32 [positions, 2, head_dim / 2]: cosines, sines
        ("positions", "<i8"),  # int64 [rows]
        ("eps", "<f4"),
        ("unused", "<f4"),
    ]
)
"""Addresses and sizes."""
ROWS_AHEAD: Final = 4
"""Rows between the one at work and the one whose places in the pages are asked for: they lie anywhere in memory."""


@njit(**INLINED)
def _rotate(
    out: Any, to: Any, x: Any, at: Any, w: Any, w_at: Any, table: Any, angles: Any, dim: Any, scale: Any
) -> Any:
    """out[to : to + dim] = one head x[at : at + dim] times `scale` and its weights, rotated."""
    half = dim // 2
    for j in range(0, half, 16):
        lower = multiply(multiply(load(x, at + j), scale), load(w, w_at + j))
        upper = multiply(multiply(load(x, at + half + j), scale), load(w, w_at + half + j))
        cos, sin = load(table, angles + j), load(table, angles + half + j)
        store(out, to + j, subtract(multiply(lower, cos), multiply(upper, sin)))
        store(out, to + half + j, add(multiply(upper, cos), multiply(lower, sin)))


@njit(**INLINED)
def _rotate_plain(out: Any, to: Any, x: Any, at: Any, table: Any, angles: Any, dim: Any) -> Any:
    """The same without norm."""
    half = dim // 2
    for j in range(0, half, 16):
        lower, upper = load(x, at + j), load(x, at + half + j)
        cos, sin = load(table, angles + j), load(table, angles + half + j)
        store(out, to + j, subtract(multiply(lower, cos), multiply(upper, sin)))
        store(out, to + half + j, add(multiply(upper, cos), multiply(lower, sin)))


@njit(**INLINED)
def _place(slot: Any, head: Any, a: Any, head_dim: Any) -> Any:
    """Index in a cache of one token's key or value of `head`."""
    block = slot // a.block_size
    return ((block * a.num_kv_heads + head) * a.block_size + slot - block * a.block_size) * head_dim


@njit(**INLINED)
def _ask_for(slot: Any, k_cache: Any, v_cache: Any, a: Any, head_dim: Any, line: Any) -> None:
    if slot >= 0:
        for head in range(a.num_kv_heads):
            place = _place(slot, head, a, head_dim)
            for d in range(0, head_dim, line):
                prefetch(k_cache, place + d)
                prefetch(v_cache, place + d)


@cache
def rotate_and_store_kernel(element: type[np.generic], head_dim: int, with_norm: bool) -> Kernel:
    """`element`: np.uint16 for bf16, np.float32; `head_dim` a multiple of 32.

    `with_norm`: each query and key head is RMS-normalised first, with its own row of `weight`.
    """
    line = 64 // np.dtype(element).itemsize

    def rotate_and_store(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        x, weight, query = pointer(a.qkv, element), pointer(a.weight, element), pointer(a.query, element)
        k_cache, v_cache = pointer(a.k_cache, element), pointer(a.v_cache, element)
        table, positions = pointer(a.table, np.float32), pointer(a.positions, np.int64)
        slots = pointer(a.slot_mapping, np.int64)
        heads, rotated = a.num_heads, a.num_heads + a.num_kv_heads
        stride = (rotated + a.num_kv_heads) * head_dim
        while True:
            first = fetch_add(a.counter, a.chunk)
            if first >= a.rows:
                return
            last = min(first + a.chunk, a.rows)
            for row in range(first, last):
                if row + ROWS_AHEAD < last:
                    _ask_for(slots[row + ROWS_AHEAD], k_cache, v_cache, a, head_dim, line)
                slot, angles = slots[row], positions[row] * head_dim
                for head in range(rotated if slot >= 0 else heads):
                    at = row * stride + head * head_dim
                    scale = inverse_rms(x, at, head_dim, a.eps) if with_norm else splat(ONE)
                    out, to = query, (row * heads + head) * head_dim
                    if head >= heads:
                        out, to = k_cache, _place(slot, head - heads, a, head_dim)
                    if with_norm:
                        _rotate(out, to, x, at, weight, head * head_dim, table, angles, head_dim, scale)
                    else:
                        _rotate_plain(out, to, x, at, table, angles, head_dim)
                for head in range(a.num_kv_heads if slot >= 0 else 0):
                    at, to = row * stride + (rotated + head) * head_dim, _place(slot, head, a, head_dim)
                    for d in range(0, head_dim, 16):
                        copy(v_cache, to + d, x, at + d)

    return Kernel(rotate_and_store, ROTATE_ARGUMENTS)
