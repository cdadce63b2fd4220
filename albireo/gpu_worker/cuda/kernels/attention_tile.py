"""What decode and prompt-chunk attention do with one tile of keys and values: find them, and fold them in.

The running softmax is that of FlashAttention (Dao et al., 2022), in powers of two.
"""

import triton
import triton.language as tl

LEAST: tl.constexpr = tl.constexpr(-1e30)
"""Below every score, and finite: a query that has seen nothing yet subtracts it from itself."""


@triton.jit
def rows_of(block, position, head, NUM_KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, D: tl.constexpr):
    """Where in a cache the keys, and the values, of `position` begin, which lies in `block`: int64, in elements."""
    return ((block.to(tl.int64) * NUM_KV_HEADS + head) * BLOCK_SIZE + position % BLOCK_SIZE) * D


@triton.jit
def nothing_seen(M: tl.constexpr, D: tl.constexpr):
    """The running softmax before the first tile: see `fold_in`."""
    return tl.full((M,), LEAST, tl.float32), tl.zeros((M,), tl.float32), tl.zeros((M, D), tl.float32)


@triton.jit
def score(q, k, IN_FP32: tl.constexpr):
    """fp32 q [M, D] @ k [N, D] transposed. IN_FP32: for Triton's interpreter, which multiplies bf16 as integers."""
    if IN_FP32:
        q, k = q.to(tl.float32), k.to(tl.float32)
    return tl.dot(q, tl.trans(k), input_precision="ieee")


@triton.jit
def fold_in(scores, v, top, total, acc, scale, IN_FP32: tl.constexpr):
    """The running softmax with a tile more: `top` [M] the largest score so far times `scale`, `total` [M] the weights'
    sum, `acc` [M, D] the weighted values.

    `scores` [M, N] are -inf where a query does not look; `scale` is positive and includes log2(e); rows of v [N, D]
    that no query sees are zeros, since no weight makes up for a NaN.
    """
    new_top = tl.maximum(top, tl.max(scores, 1) * scale)
    decay = tl.exp2(top - new_top)
    weights = tl.exp2(scores * scale - new_top[:, None])
    total = total * decay + tl.sum(weights, 1)
    weights = weights.to(v.dtype)
    if IN_FP32:
        weights, v = weights.to(tl.float32), v.to(tl.float32)
    acc = tl.dot(weights, v, acc * decay[:, None], input_precision="ieee")
    return new_top, total, acc


@triton.jit
def mean(acc, total):
    """The weighted values over the weights' sum; zeros for what has seen nothing."""
    return acc / tl.where(total == 0.0, 1.0, total)[:, None]
