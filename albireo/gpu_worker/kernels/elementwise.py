"""RMSNorm and the gated activation, each as one pass over its rows (the rotary embedding: `rotate_and_store`).

Made of torch calls they take 5 to 9 passes and as many calls: at small batches the calls cost more than the
arithmetic, at large ones the passes do. All sums and products are in fp32, rounded once when stored, in an order
that depends on nothing but the row's width: a row gives the same bits in any batch and on any number of threads.
"""

import math
from functools import cache
from typing import Any, Final

import numpy as np
from numba import carray, njit

from albireo.gpu_worker.kernels.launch import INLINED, Kernel
from albireo.gpu_worker.kernels.simd import (
    add,
    divide,
    exp2,
    fetch_add,
    fma,
    keep_between,
    load,
    maximum,
    multiply,
    pointer,
    splat,
    store,
    subtract,
    sum_lanes,
)

ZERO: Final = np.float32(0)
ONE: Final = np.float32(1)
INFINITY: Final = np.float32(np.inf)
LOG2_E: Final = np.float32(math.log2(math.e))

ROW_ARGUMENTS = np.dtype(
    [
        ("counter", "<i8"),  # int64, 0 at first: rows that threads have taken
        ("chunk", "<i8"),  # rows that a thread takes at a time
        ("rows", "<i8"),
        ("width", "<i8"),  # elements of an output row
        ("x", "<i8"),
        ("x_stride", "<i8"),  # elements from row to row
        ("out", "<i8"),
        ("weight", "<i8"),
        ("eps", "<f4"),
        ("unused", "<f4"),
    ]
)
"""Arguments of every kernel here, as far as it needs them: addresses and sizes."""


@njit(**INLINED)
def inverse_rms(x: Any, at: Any, width: Any, eps: Any) -> Any:
    """1 / sqrt(mean of squares + eps) of x[at : at + width], in all lanes."""
    total = splat(ZERO)
    for j in range(0, width, 16):
        part = load(x, at + j)
        total = fma(part, part, total)
    return splat(ONE / np.float32(math.sqrt(sum_lanes(total) / np.float32(width) + eps)))


@cache
def rms_norm_kernel(element: type[np.generic]) -> Kernel:
    """out[row] = x[row] / rms(x[row]) * weight. `element`: np.uint16 for bf16, np.float32; `width` a multiple of 16."""

    def rms_norm(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        x, weight, out = pointer(a.x, element), pointer(a.weight, element), pointer(a.out, element)
        rows, width, chunk, stride = a.rows, a.width, a.chunk, a.x_stride
        while True:
            first = fetch_add(a.counter, chunk)
            if first >= rows:
                return
            for row in range(first, min(first + chunk, rows)):
                scale = inverse_rms(x, row * stride, width, a.eps)
                for j in range(0, width, 16):
                    value = multiply(load(x, row * stride + j), scale)
                    store(out, row * width + j, multiply(value, load(weight, j)))

    return Kernel(rms_norm, ROW_ARGUMENTS)


@cache
def silu_and_mul_kernel(element: type[np.generic]) -> Kernel:
    """out[row] = silu(x[row, :width]) * x[row, width:]; `width` a multiple of 16."""

    def silu_and_mul(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        x, out = pointer(a.x, element), pointer(a.out, element)
        rows, width, chunk, stride = a.rows, a.width, a.chunk, a.x_stride
        zero, one, infinity, log2_e = splat(ZERO), splat(ONE), splat(INFINITY), splat(LOG2_E)
        while True:
            first = fetch_add(a.counter, chunk)
            if first >= rows:
                return
            for row in range(first, min(first + chunk, rows)):
                for j in range(0, width, 16):
                    gate = load(x, row * stride + j)
                    # sigmoid by exp(-|gate|), which cannot overflow: 1 / (1 + e) or e / (1 + e)
                    magnitude = maximum(gate, subtract(zero, gate))
                    small = exp2(multiply(subtract(zero, magnitude), log2_e))
                    numerator = keep_between(one, zero, gate, infinity, small)
                    sigmoid = divide(numerator, add(one, small))
                    up = load(x, row * stride + width + j)
                    store(out, row * width + j, multiply(multiply(gate, sigmoid), up))

    return Kernel(silu_and_mul, ROW_ARGUMENTS)
