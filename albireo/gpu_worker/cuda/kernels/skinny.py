"""The product of a few rows with a weight matrix on the tensor cores, at the speed of reading the weights."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows", "N"])
def skinny_kernel(
    x,  # [num_rows, K], rows x_stride elements apart
    weight,  # [N, K], contiguous
    bias,  # [N], read if HAS_BIAS
    residual,  # [num_rows, N], contiguous, read if HAS_RESIDUAL; may be `out`
    out,  # [num_rows, N], contiguous
    num_rows,
    x_stride,
    N,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IN_FP32: tl.constexpr,  # for Triton's interpreter, which multiplies bf16 as if its bits were integers
):
    """out = x @ weight.T (+ bias) (+ residual) for num_rows <= BLOCK_M; grid [tiles of BLOCK_N outputs].

    Rows that are not there cost no traffic: their loads are masked. A row's bits do not depend on the others.
    """
    m = tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    is_row = m[:, None] < num_rows
    x_tile = x + m.to(tl.int64)[:, None] * x_stride + k[None, :]
    w_tile = weight + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K + k[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        in_k = start + k[None, :] < K
        value = tl.load(x_tile + start, mask=is_row & in_k, other=0.0)
        w = tl.load(w_tile + start, mask=in_k, other=0.0, eviction_policy="evict_first")
        if IN_FP32:
            value, w = value.to(tl.float32), w.to(tl.float32)
        total = tl.dot(value, tl.trans(w), total, input_precision="ieee")
    inside = is_row & (n[None, :] < N)
    to = m.to(tl.int64)[:, None] * N + n[None, :]
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        total += tl.load(residual + to, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + to, total.to(out.dtype.element_ty), mask=inside)
