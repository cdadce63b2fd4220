"""Products of a few rows with a bf16 weight, straight from the layout that oneDNN packs weights into.

With up to four rows a product is bound by reading the weight. oneDNN reads it at half of the memory's speed and takes
about 18 us to get going; this kernel does neither, and since it reads the same packed bytes, no second copy is kept.
CPU time of all products of a decode step on one thread, oneDNN / this, in ms: 11.5M-parameter model 3.2 / 1.5 with 1
row, 3.1 / 1.8 with 4; 0.6B parameters 109 / 53 and 104 / 68.

The layout is oneDNN's own business and may change, so `packed_as_expected` compares it with the weight's bytes before
it is trusted: blocks of 64 output features, and in a block, one after the other, the pairs of input features, each as
64 times 2 elements.

The sums are taken in oneDNN's order too, found by experiment (oneDNN 3.12 with AVX512-BF16, 2 to 2048 rows, 64 to
14336 input features, 1 and 2 threads): the upper element of a pair goes first, and a long row is cut into runs that are
summed on their own. So a row gets the same bits here and there, and a request the same tokens alone and in any batch.
"""

import ctypes
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from llvmlite import ir
from numba import carray
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from albireo.gpu_worker.kernels.launch import Kernel
from albireo.gpu_worker.kernels.simd import fetch_add

MAX_ROWS: Final = 4
"""More rows than this and arithmetic, not reading, decides; oneDNN's bf16 dot products win from 6 on."""
BLOCK: Final = 64
"""Output features that lie together."""
LONG_ROW: Final = 1024
"""Input features up to which runs are half as long."""

PRODUCT_ARGUMENTS = np.dtype(
    [
        ("counter", "<i8"),  # int64, 0 at first: blocks that threads have taken
        ("chunk", "<i8"),  # blocks that a thread takes at a time
        ("blocks", "<i8"),  # output features / 64
        ("pairs", "<i8"),  # input features / 2
        ("run", "<i8"),  # pairs that are summed on their own, before the sums of the runs are added up
        ("weight", "<i8"),  # as packed
        ("x", "<i8"),  # bf16 [rows, 2 * pairs]
        ("bias", "<i8"),  # bf16 [64 * blocks], or 0
        ("residual", "<i8"),  # bf16 [rows, 64 * blocks], added to the product, or 0
        ("out", "<i8"),  # bf16 [rows, 64 * blocks]
    ]
)

_LANES: Final = 16
_VECTORS: Final = BLOCK // _LANES
_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_F32, _LANES)
_WORDS = ir.VectorType(_I32, _LANES)
_HALF_WORDS = ir.VectorType(_I16, _LANES)


def _words(value: int) -> ir.Constant:
    return ir.Constant(_WORDS, [value] * _LANES)


def _low(builder: Any, words: Any) -> Any:
    """The elements in the lower halves of 16 words, as fp32: input feature 2p."""
    return builder.bitcast(builder.shl(words, _words(16)), _VECTOR)


def _high(builder: Any, words: Any) -> Any:
    """The upper halves: input feature 2p + 1."""
    return builder.bitcast(builder.and_(words, _words(0xFFFF0000)), _VECTOR)


def _load(builder: Any, address: Any, offset: int, vector: Any, align: int) -> Any:
    at = builder.add(address, ir.Constant(_I64, offset))
    return builder.load(builder.inttoptr(at, vector.as_pointer()), align=align, typ=vector)


def _broadcast_word(builder: Any, address: Any) -> Any:
    word = builder.load(builder.inttoptr(address, _I32.as_pointer()), align=2, typ=_I32)
    first = builder.insert_element(ir.Constant(_WORDS, ir.Undefined), word, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, first, _words(0))


def _round(builder: Any, value: Any) -> Any:
    """To bf16, to nearest even."""
    bits = builder.bitcast(value, _WORDS)
    odd = builder.and_(builder.lshr(bits, _words(16)), _words(1))
    rounded = builder.add(builder.add(bits, _words(0x7FFF)), odd)
    return builder.trunc(builder.lshr(rounded, _words(16)), _HALF_WORDS)


def _block_codegen(builder: Any, rows: int, args: Any) -> None:
    """The body of `_block_product` for `rows` rows, whose `4 * rows` vectors of sums stay in registers."""
    weight, x, pairs, run, bias, residual, out, stride = args
    fma_type = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    fma = cgutils.get_or_insert_function(builder.module, fma_type, f"llvm.fma.v{_LANES}f32")
    places = [(row, j) for row in range(rows) for j in range(_VECTORS)]
    zero = ir.Constant(_VECTOR, [0.0] * _LANES)
    totals = {place: cgutils.alloca_once(builder, _VECTOR) for place in places}
    sums = {place: cgutils.alloca_once(builder, _VECTOR) for place in places}
    for place in places:
        builder.store(zero, totals[place])
    with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), pairs, run, intp=_I64) as (first, _):
        for place in places:
            builder.store(zero, sums[place])
        rest = builder.sub(pairs, first)
        count = builder.select(builder.icmp_signed("<", rest, run), rest, run)
        with cgutils.for_range(builder, count) as loop:
            index = builder.add(first, loop.index)
            at = builder.add(weight, builder.mul(index, ir.Constant(_I64, 4 * BLOCK)))
            words = [_load(builder, at, 64 * j, _WORDS, 4) for j in range(_VECTORS)]
            halves = [(_low(builder, word), _high(builder, word)) for word in words]
            for row in range(rows):
                pair = builder.add(index, builder.mul(pairs, ir.Constant(_I64, row)))
                factors = _broadcast_word(builder, builder.add(x, builder.mul(pair, ir.Constant(_I64, 4))))
                for half, factor in ((1, _high(builder, factors)), (0, _low(builder, factors))):
                    for j in range(_VECTORS):
                        total = builder.load(sums[row, j], typ=_VECTOR)
                        builder.store(builder.call(fma, [halves[j][half], factor, total]), sums[row, j])
        for place in places:
            total = builder.load(totals[place], typ=_VECTOR)
            builder.store(builder.fadd(total, builder.load(sums[place], typ=_VECTOR)), totals[place])

    def add_bf16(base: Any, row_stride: Any) -> None:
        with builder.if_then(builder.icmp_unsigned("!=", base, ir.Constant(_I64, 0))):
            for row, j in places:
                start = builder.add(base, builder.mul(row_stride, ir.Constant(_I64, row)))
                value = _low(builder, builder.zext(_load(builder, start, 32 * j, _HALF_WORDS, 2), _WORDS))
                total = builder.load(totals[row, j], typ=_VECTOR)
                builder.store(builder.fadd(total, value), totals[row, j])

    add_bf16(bias, ir.Constant(_I64, 0))
    add_bf16(residual, stride)
    for row, j in places:
        at = builder.add(out, builder.mul(stride, ir.Constant(_I64, row)))
        at = builder.inttoptr(builder.add(at, ir.Constant(_I64, 32 * j)), _HALF_WORDS.as_pointer())
        builder.store(_round(builder, builder.load(totals[row, j], typ=_VECTOR)), at, align=2)


@intrinsic(prefer_literal=True)
def _block_product(
    typing_context: Any,
    rows: Any,
    weight: Any,
    x: Any,
    pairs: Any,
    run: Any,
    bias: Any,
    residual: Any,
    out: Any,
    stride: Any,
) -> Any:
    """One block of 64 output features for the first `rows` (a constant) rows of x.

    `weight`, `bias`, `residual` and `out` are the addresses of the block's own part, bias and residual 0 if there is
    none; `stride` is the bytes from row to row of the output.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _block_codegen(builder, rows.literal_value, args[1:])
        return context.get_dummy_value()

    return types.void(rows, *[types.int64] * 8), codegen


@cache
def skinny_product_kernel(rows: int) -> Kernel:
    """out = x @ weight.T + bias + residual for exactly `rows` rows, at most `MAX_ROWS`."""

    def skinny_product(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        blocks, pairs, run, chunk, stride = a.blocks, a.pairs, a.run, a.chunk, 2 * BLOCK * a.blocks
        while True:
            first = fetch_add(a.counter, chunk)
            if first >= blocks:
                return
            for block in range(first, min(first + chunk, blocks)):
                at = 2 * BLOCK * block
                bias = a.bias + at if a.bias != 0 else 0
                residual = a.residual + at if a.residual != 0 else 0
                weight = a.weight + 4 * BLOCK * pairs * block
                _block_product(rows, weight, a.x, pairs, run, bias, residual, a.out + at, stride)

    return Kernel(skinny_product, PRODUCT_ARGUMENTS)


def run_pairs(in_features: int) -> int:
    """Pairs of input features that oneDNN sums in one run, with two rows or more."""
    return 512 if in_features > LONG_ROW else 256


def packed_as_expected(weight: Tensor, packed: Tensor) -> bool:
    """Whether `packed`, oneDNN's form of `weight` [out_features, in_features], is bf16 in the layout read here.

    Sizes are compared, and the bytes of the first and the last block.
    """
    out_features, in_features = weight.shape
    if weight.dtype != torch.bfloat16:
        return False
    if out_features % BLOCK or in_features % 32 or torch.ops.mkldnn._nbytes(packed) != weight.nbytes:
        return False
    address = torch.ops.mkldnn.data_ptr(packed)
    for block in (0, out_features // BLOCK - 1):
        rows = weight[block * BLOCK : (block + 1) * BLOCK]
        expected = rows.reshape(BLOCK, -1, 2).transpose(0, 1).contiguous().view(torch.int16).numpy()
        bytes_there = (ctypes.c_char * expected.nbytes).from_address(address + block * expected.nbytes)
        if bytes_there.raw != expected.tobytes():
            return False
    return True
