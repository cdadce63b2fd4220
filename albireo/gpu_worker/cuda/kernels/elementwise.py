"""RMSNorm and the gated activation: one pass over global memory each, fp32 inside, rounded once when stored.

The arithmetic is in functions of blocks of values, which the products with a fused norm or activation (`gemv`) call
too: fused and alone give the same bits.
"""

import triton
import triton.language as tl


@triton.jit
def inverse_rms(value, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """1 / sqrt(mean of squares + eps) of fp32 `value` [BLOCK], of which WIDTH are not zeros behind the row's end.

    Eights are summed in a fixed tree and those sums in fp64, so that the result, rounded to fp32, does not depend on
    how the compiler spreads the row over threads: it is the same in every kernel and with any number of warps.
    """
    lower, upper = tl.split(tl.reshape(value * value, (BLOCK // 2, 2)))
    lower, upper = tl.split(tl.reshape(lower + upper, (BLOCK // 4, 2)))
    lower, upper = tl.split(tl.reshape(lower + upper, (BLOCK // 8, 2)))
    total = tl.sum((lower + upper).to(tl.float64), 0).to(tl.float32)
    return tl.rsqrt(total / WIDTH + eps)


@triton.jit
def silu_times(gate, up):
    """silu(gate) * up in fp32; the exponential's argument is never positive, so it cannot overflow."""
    small = tl.exp(-tl.abs(gate))
    sigmoid = tl.where(gate >= 0, 1.0, small) / (1.0 + small)
    return gate * sigmoid * up


@triton.jit
def rms_norm_kernel(x, weight, out, x_stride, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """out[row] = x[row] / rms(x[row]) * weight; x rows `x_stride` elements apart, out contiguous; grid [rows]."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    value = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    normed = value * inverse_rms(value, eps, WIDTH, BLOCK) * factor
    tl.store(out + row * WIDTH + columns, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def silu_and_mul_kernel(gate_up, out, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """out[row] = silu(gate_up[row, :WIDTH]) * gate_up[row, WIDTH:]; grid [rows, tiles of BLOCK columns]."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    at = gate_up + row * x_stride + columns
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + WIDTH, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + columns, silu_times(gate, up).to(out.dtype.element_ty), mask=inside)
