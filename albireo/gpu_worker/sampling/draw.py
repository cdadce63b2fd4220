"""Gumbel-max over a row of logits, or over a rank's share of one: the draw of `params`, step 5."""

import math
from typing import Any, Final

import numpy as np
from numba import njit

from albireo.gpu_worker.kernels.launch import CALLED, INLINED
from albireo.gpu_worker.sampling.kernels import BLOCK, value_of

MAX_NOISE: Final = 22.8740
"""-log(-log(1 - 2^-33)) = 22.87394, rounded up."""

_MAX_FLOAT: Final = 3e38
"""Caps 1 / temperature as a float32: a finite factor keeps the maximum's own gap of 0 a 0."""
_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_ALL_ONES = np.uint32(0xFFFFFFFF)
_LN2 = np.float32(math.log(2.0))
_BITS_TO_LOG2 = np.float32(2.0**-23)


@njit(**INLINED)
def _philox(counter: Any, position: Any, key: Any) -> Any:
    """The four words of Philox4x32-10 at (counter, position low, position high, 0), as uint64."""
    a, b, c, d = np.uint64(counter), position & _LOW, position >> _32, np.uint64(0)
    k0, k1 = key & _LOW, key >> _32
    for _ in range(10):
        p0, p1 = _M0 * a, _M1 * c
        a, b, c, d = (p1 >> _32) ^ b ^ k0, p1 & _LOW, (p0 >> _32) ^ d ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return a, b, c, d


@njit(**CALLED)
def philox_block(key: Any, position: Any, counter: Any, out: Any) -> None:
    """The words of 32 counters from `counter` on: the noise of 128 tokens."""
    for j in range(BLOCK // 4):
        a, b, c, d = _philox(np.uint64(counter) + np.uint64(j), position, key)
        out[4 * j] = np.uint32(a)
        out[4 * j + 1] = np.uint32(b)
        out[4 * j + 2] = np.uint32(c)
        out[4 * j + 3] = np.uint32(d)


@njit(**INLINED)
def token_word(key: Any, position: Any, token: Any) -> Any:
    """The noise of one token."""
    a, b, c, d = _philox(np.uint64(token >> 2), position, key)
    lane = token & 3
    return np.uint32((a if lane == 0 else b) if lane < 2 else (c if lane == 2 else d))


@njit(**INLINED)
def score_of(value: Any, inv_t: Any, word: Any) -> Any:
    u = (np.float64(word) + 0.5) * 2.0**-32
    return np.float64(value) * inv_t - math.log(-math.log(u))


@njit(**INLINED)
def _may_win(value: Any, top: Any, scale: Any, word: Any, least: Any) -> Any:
    """False only for a token whose score falls short: a cheap upper bound, without a logarithm.

    g = -log(-log(u)) <= -log(1 - u), and the bits of a positive float, read as an integer, are its log2 to within
    0.086 from below (Mitchell 1962).
    """
    bits = np.float32(np.float32(_ALL_ONES ^ word) + np.float32(0.5)).view(np.int32)
    noise = _LN2 * (np.float32(159.0) - np.float32(bits) * _BITS_TO_LOG2)
    return (value - top) * scale + noise >= least


@njit(**CALLED)
def draw(
    row: Any, base: Any, first: Any, top: Any, inv_t: Any, key: Any, position: Any, value: Any, last: Any, maxima: Any,
    noise: Any,
) -> Any:  # fmt: skip
    """Gumbel-max over the prefix (value, last), which must not be empty: (token, score) of the largest score, the
    smallest id among equals.

    `top` is the row's largest logit and `first` the first token that has it. The row's first token has the id `base`,
    a multiple of BLOCK; `key` and `position` are uint64, `noise` is working memory, uint32 [BLOCK].
    """
    scale = np.float32(min(inv_t, _MAX_FLOAT))
    top_score = np.float64(top) * inv_t
    # more than the bound loses to float32, and than the scores lose to float64 where they dwarf the noise
    margin = 1e-3 + 1e-15 * abs(top_score)
    winner = np.int64(first)
    philox_block(key, position, (base + first // BLOCK * BLOCK) // 4, noise)
    best = score_of(top, inv_t, noise[first % BLOCK])
    for block in range(maxima.size):
        if maxima[block] < value or np.float64(maxima[block]) * inv_t + MAX_NOISE < best:
            continue
        start = block * BLOCK
        size = min(BLOCK, row.size - start)
        philox_block(key, position, (base + start) // 4, noise)
        least = np.float32(best - top_score - margin)
        candidates = 0
        for j in range(size):
            v = value_of(row[start + j])
            candidates += (v >= value) & _may_win(v, top, scale, noise[j], least)
        if candidates == 0:
            continue
        for j in range(size):
            v, i = value_of(row[start + j]), start + j
            kept = v > value or (v == value and i <= last)
            if kept and _may_win(v, top, scale, noise[j], least) and np.float64(v) * inv_t + MAX_NOISE >= best:
                score = score_of(v, inv_t, noise[j])
                if score > best or (score == best and i < winner):
                    best, winner = score, np.int64(i)
    return winner, best
