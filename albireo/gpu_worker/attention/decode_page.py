"""What decoding does with one page of keys or values; two query heads and eight tokens at a time, in registers."""

from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit

from albireo.gpu_worker.kernels.launch import INLINED
from albireo.gpu_worker.kernels.simd import fma, load, offset, prefetch, splat, store, store_halves, sum_each

SPLIT: Final = 512
"""Positions per item of work, and the row length of the scores: they fit the L1 cache, and a lone long sequence gives
every thread work."""
ZERO: Final = np.float32(0)


class Pages(NamedTuple):
    """One layer's pages, and the query heads that come to them."""

    keys: Any
    values: Any
    """Pointers to [num_blocks, num_kv_heads, block_size, head_dim]."""
    num_kv_heads: Any
    block_size: Any
    head_dim: Any
    padded_group: Any
    """Query heads per key/value head, rounded up to an even number."""
    line: Any
    """Elements in a cache line."""
    distance: Any
    """Pages between the one at work and the one that is asked for."""


@njit(**INLINED)
def page(cache: Any, block: Any, head: Any, pages: Any) -> Any:
    """Pointer to the page of `block` and `head`."""
    return offset(cache, (np.int64(block) * pages.num_kv_heads + head) * pages.block_size * pages.head_dim)


@njit(**INLINED)
def _prefetch_rows(page: Any, at: Any, head_dim: Any) -> None:
    """Eight rows' share of the next page: spread over the work, since a burst of requests stalls it."""
    for t in range(8):
        prefetch(page, at + t * head_dim)


@njit(**INLINED)
def page_scores(scores: Any, at: Any, query: Any, keys: Any, pages: Any, ahead: Any) -> None:
    """scores[g, at + t] = query[g] . keys[t] for a page, asking for the page `ahead` on the way."""
    head_dim = pages.head_dim
    for g in range(0, pages.padded_group, 2):
        for t in range(0, pages.block_size, 8):
            a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = splat(ZERO)
            b0 = b1 = b2 = b3 = b4 = b5 = b6 = b7 = splat(ZERO)
            row = t * head_dim
            for d in range(0, head_dim, 16):
                x = load(query, g * head_dim + d)
                y = load(query, (g + 1) * head_dim + d)
                if g == 0 and d % pages.line == 0:
                    _prefetch_rows(ahead, row + d, head_dim)
                k = load(keys, row + d)
                a0, b0 = fma(x, k, a0), fma(y, k, b0)
                k = load(keys, row + head_dim + d)
                a1, b1 = fma(x, k, a1), fma(y, k, b1)
                k = load(keys, row + 2 * head_dim + d)
                a2, b2 = fma(x, k, a2), fma(y, k, b2)
                k = load(keys, row + 3 * head_dim + d)
                a3, b3 = fma(x, k, a3), fma(y, k, b3)
                k = load(keys, row + 4 * head_dim + d)
                a4, b4 = fma(x, k, a4), fma(y, k, b4)
                k = load(keys, row + 5 * head_dim + d)
                a5, b5 = fma(x, k, a5), fma(y, k, b5)
                k = load(keys, row + 6 * head_dim + d)
                a6, b6 = fma(x, k, a6), fma(y, k, b6)
                k = load(keys, row + 7 * head_dim + d)
                a7, b7 = fma(x, k, a7), fma(y, k, b7)
            sums = sum_each(a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7)
            store_halves(scores, g * SPLIT + at + t, (g + 1) * SPLIT + at + t, sums)


@njit(**INLINED)
def page_values(acc: Any, weights: Any, at: Any, count: Any, values: Any, pages: Any, ahead: Any) -> None:
    """acc[g] += sum over t < count of weights[g, at + t] * values[t], asking for the page `ahead` on the way."""
    head_dim = pages.head_dim
    for g in range(0, pages.padded_group, 2):
        w = g * SPLIT + at
        whole = count // 8 * 8
        for t in range(0, whole, 8):
            i = w + t
            p0, p1, p2, p3 = splat(weights[i]), splat(weights[i + 1]), splat(weights[i + 2]), splat(weights[i + 3])
            p4, p5, p6, p7 = splat(weights[i + 4]), splat(weights[i + 5]), splat(weights[i + 6]), splat(weights[i + 7])
            i = w + SPLIT + t
            q0, q1, q2, q3 = splat(weights[i]), splat(weights[i + 1]), splat(weights[i + 2]), splat(weights[i + 3])
            q4, q5, q6, q7 = splat(weights[i + 4]), splat(weights[i + 5]), splat(weights[i + 6]), splat(weights[i + 7])
            row = t * head_dim
            for d in range(0, head_dim, 16):
                x = load(acc, g * head_dim + d)
                y = load(acc, (g + 1) * head_dim + d)
                if g == 0 and d % pages.line == 0:
                    _prefetch_rows(ahead, row + d, head_dim)
                v = load(values, row + d)
                x, y = fma(p0, v, x), fma(q0, v, y)
                v = load(values, row + head_dim + d)
                x, y = fma(p1, v, x), fma(q1, v, y)
                v = load(values, row + 2 * head_dim + d)
                x, y = fma(p2, v, x), fma(q2, v, y)
                v = load(values, row + 3 * head_dim + d)
                x, y = fma(p3, v, x), fma(q3, v, y)
                v = load(values, row + 4 * head_dim + d)
                x, y = fma(p4, v, x), fma(q4, v, y)
                v = load(values, row + 5 * head_dim + d)
                x, y = fma(p5, v, x), fma(q5, v, y)
                v = load(values, row + 6 * head_dim + d)
                x, y = fma(p6, v, x), fma(q6, v, y)
                v = load(values, row + 7 * head_dim + d)
                x, y = fma(p7, v, x), fma(q7, v, y)
                store(acc, g * head_dim + d, x)
                store(acc, (g + 1) * head_dim + d, y)
        for t in range(whole, count):
            p0, q0 = splat(weights[w + t]), splat(weights[w + SPLIT + t])
            for d in range(0, head_dim, 16):
                v = load(values, t * head_dim + d)
                store(acc, g * head_dim + d, fma(p0, v, load(acc, g * head_dim + d)))
                store(acc, (g + 1) * head_dim + d, fma(q0, v, load(acc, (g + 1) * head_dim + d)))
