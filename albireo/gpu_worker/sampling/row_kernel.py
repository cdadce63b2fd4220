"""The kernel that samples whole rows: on one rank all of a batch, on t ranks those that it owns."""

from functools import cache
from typing import Any

import numpy as np
from numba import carray, njit

from albireo.gpu_worker.kernels.launch import CALLED, INLINED, Kernel
from albireo.gpu_worker.kernels.simd import fetch_add, offset, pointer
from albireo.gpu_worker.sampling.arguments import ARGUMENTS, Element
from albireo.gpu_worker.sampling.draw import draw
from albireo.gpu_worker.sampling.kernels import (
    BLOCK,
    LAST_ID,
    NEG_INF,
    NO_BOUND,
    NUM_BINS,
    block_maxima,
    first_equal,
    mass_behind,
    mass_near,
    mass_needed,
    min_p_floor,
    nucleus_floor,
    top_k_prefix,
    value_of,
)


@njit(**INLINED)
def row_of(a: Any, logits: Any, r: Any) -> Any:
    """Row `r` of the batch as it came from the model."""
    return carray(offset(logits, r * a.stride), (a.size,))


@njit(**INLINED)
def adjusted_row(a: Any, index: Any) -> Any:
    """Row `index` of the adjusted ones, float32."""
    return carray(offset(pointer(a.adjusted, np.float32), index * a.adjusted_stride), (a.size,))


@njit(**INLINED)
def adjusted_index(a: Any, r: Any) -> Any:
    """The adjusted row that replaces row `r`, -1 for none."""
    return np.int64(pointer(a.adjusted_index, np.int32)[r]) if a.adjusted_index else np.int64(-1)


@njit(**INLINED)
def scratch_of(a: Any, thread: Any) -> Any:
    """The thread's (noise, bins, ids, keys)."""
    width = a.scratch_width
    return (
        carray(offset(pointer(a.noise, np.uint32), thread * BLOCK), (BLOCK,)),
        carray(offset(pointer(a.bins, np.int64), thread * NUM_BINS), (NUM_BINS,)),
        carray(offset(pointer(a.ids, np.int32), thread * width), (width,)),
        carray(offset(pointer(a.keys, np.int32), thread * width), (width,)),
    )


@njit(**CALLED)
def _nucleus_draw(
    row: Any, first: Any, top: Any, inv_t: Any, top_p: Any, key: Any, position: Any, value: Any, last: Any,
    near: Any, near_last: Any, maxima: Any, noise: Any,
) -> Any:  # fmt: skip
    """The draw among the tokens of the nucleus of the prefix (value, last), which lies inside (near, near_last)."""
    lower, upper = np.int64(0), NO_BOUND
    while True:
        winner, _ = draw(row, 0, first, top, inv_t, key, position, near, near_last, maxima, noise)
        own = value_of(row[winner])
        before, inside, behind = mass_near(row, maxima, top, inv_t, value, last, own, winner)
        lower, upper = max(lower, inside), min(upper, inside + behind)
        if mass_needed(top_p, lower) <= before < mass_needed(top_p, upper):
            lower = inside + mass_behind(row, maxima, top, inv_t, value, last, own)
            upper = lower
        if before < mass_needed(top_p, lower):
            return winner
        near, near_last = own, np.int32(winner - 1)


@njit(**CALLED)
def _sample_row(
    row: Any, temperature: Any, top_p: Any, min_p: Any, top_k: Any, seed: Any, position: Any, maxima: Any, noise: Any,
    bins: Any, ids: Any, keys: Any,
) -> Any:  # fmt: skip
    top = block_maxima(row, maxima)
    first = first_equal(row, maxima, top)
    if not temperature > 0.0 or abs(top) == np.float32(np.inf):
        return first
    inv_t = 1.0 / np.float64(temperature)
    value, last = NEG_INF, LAST_ID
    if 0 < top_k < row.size:
        value, last = top_k_prefix(row, top_k, maxima, bins, ids, keys)
    if min_p > 0.0:
        floor = min_p_floor(top, temperature, min_p)
        if floor > value:
            value, last = floor, LAST_ID
    key, position = np.uint64(seed), np.uint64(position)
    if not top_p < 1.0:
        return draw(row, 0, first, top, inv_t, key, position, value, last, maxima, noise)[0]
    floor = nucleus_floor(top, temperature, top_p, row.size)
    near, near_last = (floor, LAST_ID) if floor > value else (value, last)
    return _nucleus_draw(
        row, first, top, inv_t, top_p, key, position, value, last, near, near_last, maxima, noise
    )  # fmt: skip


@cache
def row_kernel(element: Element) -> Kernel:
    """Samples rows 0 to num_rows - 1 into `tokens`. `element`: np.uint16 for bf16, np.float32.

    Threads take row by row, so that costly rows spread, and use `maxima` and the scratch by the order they came in.
    """

    def sample_rows(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        logits, tokens = pointer(a.logits, element), pointer(a.tokens, np.int32)
        slots, positions = pointer(a.slots, np.int32), pointer(a.positions, np.int64)
        temperature, top_p = pointer(a.temperature, np.float32), pointer(a.top_p, np.float32)
        min_p, top_k = pointer(a.min_p, np.float32), pointer(a.top_k, np.int32)
        seed = pointer(a.seed, np.int64)
        thread = fetch_add(a.counters + 8, 1)
        noise, bins, ids, keys = scratch_of(a, thread)
        maxima = carray(offset(pointer(a.maxima, np.float32), thread * a.num_blocks), (a.num_blocks,))
        while True:
            r = fetch_add(a.counters, 1)
            if r >= a.num_rows:
                return
            s, adjusted = slots[r], adjusted_index(a, r)
            t, p, m, k = temperature[s], top_p[s], min_p[s], top_k[s]
            if adjusted >= 0:
                row = adjusted_row(a, adjusted)
                tokens[r] = _sample_row(row, t, p, m, k, seed[s], positions[r], maxima, noise, bins, ids, keys)
            else:
                raw = row_of(a, logits, r)
                tokens[r] = _sample_row(raw, t, p, m, k, seed[s], positions[r], maxima, noise, bins, ids, keys)

    return Kernel(sample_rows, ARGUMENTS)
