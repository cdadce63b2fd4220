"""The product of one row with a weight matrix, at the speed of reading the weights once.

A program sums BLOCK_N outputs over the whole input. Its threads lie along the input, so that each reads 16 bytes at a
time of each of the BLOCK_N rows and multiplies all of them with the same 8 inputs, and the threads' sums meet once, at
the end. The order of a sum depends on BLOCK_K and the number of warps alone: not on BLOCK_N, nor on what is fused.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from albireo.gpu_worker.cuda.kernels.elementwise import inverse_rms, silu_times


@triton.jit
def _load_tile(tile, start, k, K: tl.constexpr):
    """Weights [BLOCK_N, BLOCK_K] from column `start` on; read once, so the first to leave the L2 cache."""
    return tl.load(tile + start, mask=start + k < K, other=0.0, eviction_policy="evict_first")


@triton.jit
def _partial_sums(w, value, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, VECTOR: tl.constexpr):
    """Products of w [BLOCK_N, BLOCK_K] and fp32 value [1, BLOCK_K], those of a thread's 16 bytes summed."""
    return tl.sum(tl.reshape(w.to(tl.float32) * value, (BLOCK_N, BLOCK_K // VECTOR, VECTOR)), 2)


@triton.jit
def _load_input(x, norm_weight, scale, at, K: tl.constexpr, NORMED: tl.constexpr):
    """fp32 x[at], times `scale` and the norm's weight and rounded as `rms_norm_kernel` does if NORMED."""
    value = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
    if NORMED:
        factor = tl.load(norm_weight + at, mask=at < K, other=0.0).to(tl.float32)
        value = (value * scale * factor).to(x.dtype.element_ty).to(tl.float32)
    return value


@triton.jit
def _store(
    total, up_total, bias, residual, out, n, N,
    GATED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """The threads' sums together, and what follows the product; rounded and stored."""
    element = out.dtype.element_ty
    inside = n < N
    result = tl.sum(total, 1)
    if HAS_BIAS:
        result += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        up = tl.sum(up_total, 1)
        if HAS_BIAS:
            up += tl.load(bias + N + n, mask=inside, other=0.0).to(tl.float32)
        # rounded as the product alone would store them
        result = silu_times(result.to(element).to(tl.float32), up.to(element).to(tl.float32))
    if HAS_RESIDUAL:
        result += tl.load(residual + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + n, result.to(element), mask=inside)


@triton.jit(do_not_specialize=["N"])
def gemv_kernel(
    x,  # [K]
    weight,  # [N, K], or [2 * N, K] if GATED: gates, then ups; contiguous
    bias,  # [N] or [2 * N], read if HAS_BIAS
    residual,  # [N], read if HAS_RESIDUAL; may be `out`
    out,  # [N]
    norm_weight,  # [K], read if NORMED
    eps,
    N,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    VECTOR: tl.constexpr,  # elements in 16 bytes
    NORM_BLOCK: tl.constexpr,  # K or the power of two above it, at least 8
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """out = weight @ x (+ bias) (+ residual); NORMED: of x's RMSNorm; GATED: silu(gate) * up. Grid [tiles of BLOCK_N].

    STAGES: weights on their way while others are multiplied, in tiles: 1 keeps them in registers, asked for before the
    norm's sum is known; from 2 on they go through shared memory (cp.async), STAGES - 1 tiles ahead.
    IS_DEPENDENT: launched as a programmatic dependent: it may start before the kernel in front of it has ended, reads
    nothing but weights before it has, and lets the next one start likewise.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)[None, :]
    # rows past the end are read as the last one and not stored
    tile = weight + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K + k
    up_tile = tile + N.to(tl.int64) * K if GATED else tile
    total = tl.zeros((BLOCK_N, BLOCK_K // VECTOR), tl.float32)
    up_total = tl.zeros((BLOCK_N, BLOCK_K // VECTOR), tl.float32)
    scale = 1.0
    if STAGES == 1:
        w = _load_tile(tile, 0, k, K)
        if GATED:
            up_w = _load_tile(up_tile, 0, k, K)
    if IS_DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    if NORMED:
        columns = tl.arange(0, NORM_BLOCK)
        whole = tl.load(x + columns, mask=columns < K, other=0.0).to(tl.float32)
        scale = inverse_rms(whole, eps, K, NORM_BLOCK)
    if STAGES == 1:
        for start in range(0, K, BLOCK_K):
            next_w = _load_tile(tile, start + BLOCK_K, k, K)
            if GATED:
                next_up_w = _load_tile(up_tile, start + BLOCK_K, k, K)
            value = _load_input(x, norm_weight, scale, start + k, K, NORMED)
            total += _partial_sums(w, value, BLOCK_N, BLOCK_K, VECTOR)
            w = next_w
            if GATED:
                up_total += _partial_sums(up_w, value, BLOCK_N, BLOCK_K, VECTOR)
                up_w = next_up_w
    else:
        for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
            w = _load_tile(tile, start, k, K)
            value = _load_input(x, norm_weight, scale, start + k, K, NORMED)
            total += _partial_sums(w, value, BLOCK_N, BLOCK_K, VECTOR)
            if GATED:
                up_w = _load_tile(up_tile, start, k, K)
                up_total += _partial_sums(up_w, value, BLOCK_N, BLOCK_K, VECTOR)

    _store(total, up_total, bias, residual, out, n, N, GATED, HAS_BIAS, HAS_RESIDUAL)
