"""Pairs of bf16 in 32-bit words, and their dot products: two multiplications per lane and instruction, summed in fp32.

AVX512-BF16 has an instruction for it; elsewhere it becomes shifts and two fused multiply-adds.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from albireo.gpu_worker.kernels.simd import LANES, f32x16

_I32 = ir.IntType(32)
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_WORDS = ir.VectorType(_I32, LANES)


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no type for."""

    def _to_string(self) -> str:
        return "bfloat"


_PAIRS = ir.VectorType(_BFloat(), 2 * LANES)


def _words(value: int) -> ir.Constant:
    return ir.Constant(_WORDS, [value] * LANES)


def _low(builder: Any, words: Any) -> Any:
    return builder.bitcast(builder.shl(words, _words(16)), _VECTOR)


def _high(builder: Any, words: Any) -> Any:
    return builder.bitcast(builder.and_(words, _words(0xFFFF0000)), _VECTOR)


def dot_pairs(context: Any, builder: Any, total: Any, a: Any, b: Any) -> Any:
    """IR for total + a.low * b.low + a.high * b.high, lane by lane; a and b are vectors of 16 words."""
    _, _, features = context.codegen().magic_tuple()
    if "+avx512bf16" in features:
        function_type = ir.FunctionType(_VECTOR, [_VECTOR, _PAIRS, _PAIRS])
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        function = cgutils.get_or_insert_function(builder.module, function_type, name)
        return builder.call(function, [total, builder.bitcast(a, _PAIRS), builder.bitcast(b, _PAIRS)])
    function_type = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    fma = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.fma.v{LANES}f32")
    total = builder.call(fma, [_high(builder, a), _high(builder, b), total])
    return builder.call(fma, [_low(builder, a), _low(builder, b), total])


@intrinsic
def words(typing_context: Any, floats: Any) -> Any:
    """A pointer to fp32 as a pointer to words of two bf16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.uint32)(types.CPointer(types.float32)), codegen


@intrinsic
def round_to_bf16(typing_context: Any, x: Any) -> Any:
    """The lanes rounded to bf16 (to nearest even), still as fp32. For finite numbers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _WORDS)
        odd = builder.and_(builder.lshr(bits, _words(16)), _words(1))
        return _high(builder, builder.add(builder.add(bits, _words(0x7FFF)), odd))

    return f32x16(f32x16), codegen


@intrinsic
def store_pairs(typing_context: Any, target: Any, index: Any, low: Any, high: Any) -> Any:
    """Words target[index : index + 16] with `low` in their lower halves and `high` in their upper ones.

    Both are fp32 lanes whose values are bf16 already.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, index, low, high = args
        lower = builder.lshr(builder.bitcast(low, _WORDS), _words(16))
        words = builder.or_(lower, builder.and_(builder.bitcast(high, _WORDS), _words(0xFFFF0000)))
        at = builder.bitcast(builder.gep(target, [index], source_etype=_I32), _WORDS.as_pointer())
        builder.store(words, at, align=4)
        return context.get_dummy_value()

    return types.void(types.CPointer(types.uint32), types.int64, f32x16, f32x16), codegen
