"""Small matrix products with their sums in registers: the inner loops of attention over prompt chunks.

    c[i, j] = c[i, j] * decay[j] + sum over k < n of a[i * a_row + k * a_step] * b[k, j]

for ROWS rows i and `columns` columns j. c and decay are fp32; rows of b and c are COLUMNS apart. a and b are fp32, or
words of two bf16 each, whose products are added. Each sum runs in the order of k, so an element does not depend on
what else is in the tile.
"""

from typing import Any, Final

from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from albireo.gpu_worker.kernels.bf16_pairs import dot_pairs
from albireo.gpu_worker.kernels.launch import CALLED
from albireo.gpu_worker.kernels.simd import LANES, offset

ROWS: Final = 4
COLUMNS: Final = 64
"""A tile of 16 AVX-512 registers of sums, with 4 of `b`; `a` is broadcast from memory."""

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_F32, LANES)
_FLOATS = types.CPointer(types.float32)


def _load(builder: Any, base: Any, index: Any, element: Any) -> Any:
    at = builder.gep(base, [index], source_etype=element)
    return builder.load(at, align=4, typ=ir.VectorType(element, LANES))


def _broadcast(builder: Any, base: Any, index: Any, element: Any) -> Any:
    scalar = builder.load(builder.gep(base, [index], source_etype=element), align=4, typ=element)
    first = builder.insert_element(
        ir.Constant(ir.VectorType(element, LANES), ir.Undefined), scalar, ir.Constant(_I32, 0)
    )
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


def _fma(context: Any, builder: Any, total: Any, a: Any, b: Any) -> Any:
    function_type = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.fma.v{LANES}f32")
    return builder.call(function, [a, b, total])


def _product(width: int, pairs: bool, accumulate: bool) -> Any:
    """The product over `width` columns; without `accumulate`, c and decay are not read."""
    offsets = range(0, width, LANES)
    places = [(i, j) for i in range(ROWS) for j in offsets]
    element = _I32 if pairs else _F32
    multiply_add = dot_pairs if pairs else _fma

    def start(builder: Any, c: Any, decay: Any, i: int, j: int) -> Any:
        if not accumulate:
            return ir.Constant(_VECTOR, [0.0] * LANES)
        before = _load(builder, c, ir.Constant(_I64, i * COLUMNS + j), _F32)
        return builder.fmul(before, _load(builder, decay, ir.Constant(_I64, j), _F32))

    def multiply(
        typing_context: Any, c: Any, decay: Any, a: Any, a_row: Any, a_step: Any, b: Any, n: Any
    ) -> tuple[Any, Any]:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            c, decay, a, a_row, a_step, b, n = args
            # LLVM turns these into registers
            sums = {place: cgutils.alloca_once(builder, _VECTOR) for place in places}
            for i, j in places:
                builder.store(start(builder, c, decay, i, j), sums[i, j])
            with cgutils.for_range(builder, n) as loop:
                at = builder.mul(loop.index, ir.Constant(_I64, COLUMNS))
                columns = {j: _load(builder, b, builder.add(at, ir.Constant(_I64, j)), element) for j in offsets}
                step = builder.mul(loop.index, a_step)
                rows = [builder.add(builder.mul(a_row, ir.Constant(_I64, i)), step) for i in range(ROWS)]
                factors = [_broadcast(builder, a, row, element) for row in rows]
                for i, j in places:
                    total = builder.load(sums[i, j], typ=_VECTOR)
                    builder.store(multiply_add(context, builder, total, factors[i], columns[j]), sums[i, j])
            for i, j in places:
                at = builder.gep(c, [ir.Constant(_I64, i * COLUMNS + j)], source_etype=_F32)
                at = builder.bitcast(at, _VECTOR.as_pointer())
                builder.store(builder.load(sums[i, j], typ=_VECTOR), at, align=4)
            return context.get_dummy_value()

        factor = types.CPointer(types.uint32) if pairs else _FLOATS
        signature = types.void(_FLOATS, _FLOATS, factor, types.int64, types.int64, factor, types.int64)
        return signature, codegen

    return intrinsic(multiply)


_wide_start, _narrow_start = _product(COLUMNS, False, False), _product(LANES, False, False)
_wide_more, _narrow_more = _product(COLUMNS, False, True), _product(LANES, False, True)
_wide_start_pairs, _narrow_start_pairs = _product(COLUMNS, True, False), _product(LANES, True, False)
_wide_more_pairs, _narrow_more_pairs = _product(COLUMNS, True, True), _product(LANES, True, True)


@njit(**CALLED)
def multiply_tile(c: Any, a: Any, a_row: Any, a_step: Any, b: Any, n: Any, columns: Any) -> None:
    """The product of fp32, with c and decay taken as 0."""
    if columns > COLUMNS // 2:
        _wide_start(c, c, a, a_row, a_step, b, n)
    else:
        for j in range(0, columns, LANES):
            _narrow_start(offset(c, j), c, a, a_row, a_step, offset(b, j), n)


@njit(**CALLED)
def accumulate_tile(c: Any, decay: Any, a: Any, a_row: Any, a_step: Any, b: Any, n: Any, columns: Any) -> None:
    """The product of fp32."""
    if columns > COLUMNS // 2:
        _wide_more(c, decay, a, a_row, a_step, b, n)
    else:
        for j in range(0, columns, LANES):
            _narrow_more(offset(c, j), offset(decay, j), a, a_row, a_step, offset(b, j), n)


@njit(**CALLED)
def multiply_pairs_tile(c: Any, a: Any, a_row: Any, a_step: Any, b: Any, n: Any, columns: Any) -> None:
    """The product of words, with c and decay taken as 0."""
    if columns > COLUMNS // 2:
        _wide_start_pairs(c, c, a, a_row, a_step, b, n)
    else:
        for j in range(0, columns, LANES):
            _narrow_start_pairs(offset(c, j), c, a, a_row, a_step, offset(b, j), n)


@njit(**CALLED)
def accumulate_pairs_tile(c: Any, decay: Any, a: Any, a_row: Any, a_step: Any, b: Any, n: Any, columns: Any) -> None:
    """The product of words."""
    if columns > COLUMNS // 2:
        _wide_more_pairs(c, decay, a, a_row, a_step, b, n)
    else:
        for j in range(0, columns, LANES):
            _narrow_more_pairs(offset(c, j), offset(decay, j), a, a_row, a_step, offset(b, j), n)
