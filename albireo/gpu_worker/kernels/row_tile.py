"""The inner loop of products with packed weights: a few rows of bf16 activations against 64 output features.

    sums[i, j] += sum over pairs p < n of x[i, 2p] * weight[2p, j] + x[i, 2p + 1] * weight[2p + 1, j]

Every sum runs in the order of p, so an element does not depend on the number of rows, nor on how the pairs are cut
into calls.
"""

from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from albireo.gpu_worker.kernels.bf16_pairs import dot_pairs
from albireo.gpu_worker.kernels.simd import LANES

TILE_ROWS: Final = 6
"""Most rows at a time: 24 AVX-512 registers of sums, 4 of weights, the rest for factors."""
COLUMNS: Final = 64
"""Output features, whose pairs lie together in the packed weight."""

_WORD_BYTES: Final = 4
_LINE_BYTES: Final = 64
_LINES_AHEAD: Final = 2
_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_F32, LANES)
_WORDS = ir.VectorType(_I32, LANES)


def _constant(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _vector_at(builder: Any, address: Any, offset: int, vector: Any) -> Any:
    return builder.inttoptr(builder.add(address, _constant(offset)), vector.as_pointer())


def _broadcast_word(builder: Any, address: Any) -> Any:
    word = builder.load(builder.inttoptr(address, _I32.as_pointer()), align=2, typ=_I32)
    first = builder.insert_element(ir.Constant(_WORDS, ir.Undefined), word, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, first, ir.Constant(_WORDS, [0] * LANES))


def _prefetch(builder: Any, address: Any) -> None:
    at = builder.inttoptr(address, ir.IntType(8).as_pointer())
    function_type = ir.FunctionType(ir.VoidType(), [at.type, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
    builder.call(function, [at, *(ir.Constant(_I32, value) for value in (0, 2, 1))])  # a read, to L2, of data


def _emit_tile(
    context: Any, builder: Any, rows: int, sums: Any, weight: Any, x: Any, x_row: Any, n: Any, ahead: Any, step: Any
) -> None:
    """IR of `tile_product` for a fixed number of rows."""
    vectors = range(COLUMNS // LANES)
    offsets = {(i, j): (COLUMNS * i + LANES * j) * _WORD_BYTES for i in range(rows) for j in vectors}
    # LLVM turns these into registers
    totals = {place: cgutils.alloca_once(builder, _VECTOR) for place in offsets}
    for place, offset in offsets.items():
        start = builder.load(_vector_at(builder, sums, offset, _VECTOR), align=4, typ=_VECTOR)
        builder.store(start, totals[place])
    starts = [builder.add(x, builder.mul(x_row, _constant(i))) for i in range(rows)]
    with cgutils.for_range(builder, n) as loop:
        at = builder.add(weight, builder.mul(loop.index, _constant(COLUMNS * _WORD_BYTES)))
        next_lines = builder.add(ahead, builder.mul(loop.index, step))
        for line in range(_LINES_AHEAD):
            _prefetch(builder, builder.add(next_lines, _constant(line * _LINE_BYTES)))
        columns = [
            builder.load(_vector_at(builder, at, LANES * _WORD_BYTES * j, _WORDS), align=4, typ=_WORDS) for j in vectors
        ]
        for i, start in enumerate(starts):
            factors = _broadcast_word(builder, builder.add(start, builder.mul(loop.index, _constant(_WORD_BYTES))))
            for j in vectors:
                total = builder.load(totals[i, j], typ=_VECTOR)
                # weight first: where the two products are added one by one, the order is that of the pair
                builder.store(dot_pairs(context, builder, total, columns[j], factors), totals[i, j])
    for place, offset in offsets.items():
        builder.store(builder.load(totals[place], typ=_VECTOR), _vector_at(builder, sums, offset, _VECTOR), align=4)


def _tile_function(context: Any, module: Any, rows: int) -> Any:
    """A function of its own, for registers of its own: inlined, its loop reloads addresses from the stack."""
    function = cgutils.get_or_insert_function(module, ir.FunctionType(ir.VoidType(), [_I64] * 7), f"tile_of_{rows}")
    if not function.blocks:
        function.linkage = "internal"
        function.attributes.add("noinline")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        _emit_tile(context, builder, rows, *function.args)
        builder.ret_void()
    return function


@intrinsic
def tile_product(
    typing_context: Any,
    rows: Any,
    sums: Any,
    weight: Any,
    x: Any,
    x_row: Any,
    n: Any,
    ahead: Any,
    step: Any,
) -> Any:
    """Adds the products of `n` pairs to the fp32 sums [rows, COLUMNS], 1 to `TILE_ROWS` rows.

    `sums`, `weight` (words [n, COLUMNS]) and `x` (words, rows `x_row` bytes apart) are addresses. With every pair two
    cache lines from the address `ahead` on are asked for, which then moves on by `step` bytes; it may be any address.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        end = builder.append_basic_block("end")
        switch = builder.switch(args[0], end)
        for tile_rows in range(1, TILE_ROWS + 1):
            branch = builder.append_basic_block(f"rows_{tile_rows}")
            switch.add_case(_constant(tile_rows), branch)
            builder.position_at_end(branch)
            builder.call(_tile_function(context, builder.module, tile_rows), args[1:])
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), codegen
