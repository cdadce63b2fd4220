"""A small matrix product with its sums in registers: the inner loop of attention over prompt chunks."""

from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from albireo.gpu_worker.kernels.launch import CALLED
from albireo.gpu_worker.kernels.simd import offset

ROWS = 4
COLUMNS = 64
"""A tile of 16 AVX-512 registers of sums, with 4 of `b`; `a` is broadcast from memory."""

_LANES = 16
_F32 = ir.FloatType()
_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(_F32, _LANES)
_POINTER = types.CPointer(types.float32)


def _load(builder: Any, base: Any, index: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(base, [index]), _VECTOR.as_pointer()), align=4, typ=_VECTOR)


def _broadcast(builder: Any, base: Any, index: Any) -> Any:
    scalar = builder.load(builder.gep(base, [index]), typ=_F32)
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES))


def _product(width: int) -> Any:
    """`multiply_tile` over `width` columns."""
    offsets = range(0, width, _LANES)

    def multiply(
        typing_context: Any, c: Any, decay: Any, a: Any, a_row: Any, a_step: Any, b: Any, n: Any
    ) -> tuple[Any, Any]:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            c, decay, a, a_row, a_step, b, n = args
            function_type = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
            fma = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.fma.v{_LANES}f32")
            places = [(i, j) for i in range(ROWS) for j in offsets]
            sums = {}
            for i, j in places:
                start = _load(builder, c, ir.Constant(_I64, i * COLUMNS + j))
                start = builder.fmul(start, _load(builder, decay, ir.Constant(_I64, j)))
                sums[i, j] = cgutils.alloca_once_value(builder, start)  # LLVM turns it into a register
            with cgutils.for_range(builder, n) as loop:
                at = builder.mul(loop.index, ir.Constant(_I64, COLUMNS))
                columns = {j: _load(builder, b, builder.add(at, ir.Constant(_I64, j))) for j in offsets}
                step = builder.mul(loop.index, a_step)
                rows = [builder.add(builder.mul(a_row, ir.Constant(_I64, i)), step) for i in range(ROWS)]
                factors = [_broadcast(builder, a, row) for row in rows]
                for i, j in places:
                    total = builder.load(sums[i, j], typ=_VECTOR)
                    builder.store(builder.call(fma, [factors[i], columns[j], total]), sums[i, j])
            for i, j in places:
                at = builder.bitcast(builder.gep(c, [ir.Constant(_I64, i * COLUMNS + j)]), _VECTOR.as_pointer())
                builder.store(builder.load(sums[i, j], typ=_VECTOR), at, align=4)
            return context.get_dummy_value()

        signature = types.void(_POINTER, _POINTER, _POINTER, types.int64, types.int64, _POINTER, types.int64)
        return signature, codegen

    return intrinsic(multiply)


_multiply_wide = _product(COLUMNS)
_multiply_narrow = _product(_LANES)


@njit(**CALLED)
def multiply_tile(c: Any, decay: Any, a: Any, a_row: Any, a_step: Any, b: Any, n: Any, columns: Any) -> None:
    """c[i, j] = c[i, j] * decay[j] + sum over k < n of a[i * a_row + k * a_step] * b[k, j], for ROWS rows of c.

    All are pointers to fp32; rows of c and b are COLUMNS apart, and the first `columns` of them are computed. Each
    sum runs in the order of k, so an element does not depend on what else is in the tile.
    """
    if columns > COLUMNS // 2:
        _multiply_wide(c, decay, a, a_row, a_step, b, n)
    else:
        for j in range(0, columns, 16):
            _multiply_narrow(offset(c, j), offset(decay, j), a, a_row, a_step, offset(b, j), n)
