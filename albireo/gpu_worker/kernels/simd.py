"""Vectors of 16 fp32 lanes for numba kernels: written out, not left to the auto-vectoriser.

numba's loops over arrays carry wrap-around checks and aliasing doubts that keep LLVM from vectorising (measured:
gathers where loads should be, 5 times slower). Here a kernel names its vectors and pointers, and LLVM maps 16 lanes
onto whatever the CPU has: one AVX-512 register, two AVX2 ones, four of NEON. The order of all sums is the written
one, so a result does not depend on the compiler's mood.

bf16 elements are `uint16` in memory: `load` widens them by a shift, `store` rounds to nearest, ties to even.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

LANES = 16
_I32 = ir.IntType(32)
_F32 = ir.FloatType()
_VECTOR = ir.VectorType(_F32, LANES)
_INT_VECTOR = ir.VectorType(_I32, LANES)
_HALF_INT_VECTOR = ir.VectorType(ir.IntType(16), LANES)


class _Vector(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="f32x16")


f32x16 = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, data_model_manager: Any, numba_type: Any) -> None:
        super().__init__(data_model_manager, numba_type, _VECTOR)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * LANES)


def _int_constant(value: int) -> ir.Constant:
    return ir.Constant(_INT_VECTOR, [value] * LANES)


def _call(builder: Any, name: str, *args: Any) -> Any:
    """An LLVM intrinsic over f32x16 operands, contracted and reassociated nowhere."""
    function_type = ir.FunctionType(_VECTOR, [_VECTOR] * len(args))
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, f"{name}.v{LANES}f32"), args)


def _element_pointer(builder: Any, pointer: Any, index: Any, element: Any) -> Any:
    return builder.gep(builder.bitcast(pointer, element.as_pointer()), [index])


def _lane_type(pointer: Any) -> Any:
    return ir.IntType(16) if pointer.dtype == types.uint16 else _F32


@intrinsic
def pointer(typing_context: Any, address: Any, element: Any) -> Any:
    """`address` (an integer) as a pointer to `element` (np.float32, np.uint16 for bf16, np.int32, np.int64)."""
    result = types.CPointer(element.instance_type)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return result(types.int64, element), codegen


@intrinsic
def offset(typing_context: Any, base: Any, elements: Any) -> Any:
    """The pointer `elements` further on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return base(base, types.int64), codegen


@intrinsic
def fetch_add(typing_context: Any, address: Any, amount: Any) -> Any:
    """Atomically add to the int64 at `address`; the value before. Orders the memory around it (acquire, release)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", target, args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def load(typing_context: Any, source: Any, index: Any) -> Any:
    """Lanes source[index : index + 16], widened to fp32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lane = _lane_type(source)
        at = _element_pointer(builder, args[0], args[1], lane)
        if lane is _F32:
            return builder.load(builder.bitcast(at, _VECTOR.as_pointer()), align=4, typ=_VECTOR)
        half = builder.load(builder.bitcast(at, _HALF_INT_VECTOR.as_pointer()), align=2, typ=_HALF_INT_VECTOR)
        return builder.bitcast(builder.shl(builder.zext(half, _INT_VECTOR), _int_constant(16)), _VECTOR)

    return f32x16(source, types.int64), codegen


def _round_to_bf16(builder: Any, value: Any) -> Any:
    """The upper halves of the lanes, rounded to nearest even (NaN stays NaN for the quiet NaNs that CPUs produce)."""
    bits = builder.bitcast(value, _INT_VECTOR)
    odd = builder.and_(builder.lshr(bits, _int_constant(16)), _int_constant(1))
    rounded = builder.add(builder.add(bits, _int_constant(0x7FFF)), odd)
    return builder.trunc(builder.lshr(rounded, _int_constant(16)), _HALF_INT_VECTOR)


@intrinsic
def store(typing_context: Any, target: Any, index: Any, value: Any) -> Any:
    """Write the lanes to target[index : index + 16], rounded to the target's type."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lane = _lane_type(target)
        at = _element_pointer(builder, args[0], args[1], lane)
        lanes = args[2] if lane is _F32 else _round_to_bf16(builder, args[2])
        builder.store(lanes, builder.bitcast(at, lanes.type.as_pointer()), align=4 if lane is _F32 else 2)
        return context.get_dummy_value()

    return types.void(target, types.int64, f32x16), codegen


@intrinsic
def copy(typing_context: Any, target: Any, target_index: Any, source: Any, source_index: Any) -> Any:
    """target[target_index : + 16] = source[source_index : + 16], bits as they are; both of one type."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lane = _lane_type(source)
        lanes = ir.VectorType(lane, LANES)
        size = 4 if lane is _F32 else 2
        at = _element_pointer(builder, args[2], args[3], lane)
        value = builder.load(builder.bitcast(at, lanes.as_pointer()), align=size, typ=lanes)
        at = _element_pointer(builder, args[0], args[1], lane)
        builder.store(value, builder.bitcast(at, lanes.as_pointer()), align=size)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64), codegen


@intrinsic
def store_halves(typing_context: Any, target: Any, low_index: Any, high_index: Any, value: Any) -> Any:
    """Lanes 0..7 to the fp32 target[low_index:], lanes 8..15 to target[high_index:]."""
    half = ir.VectorType(_F32, LANES // 2)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        for index, first in ((args[1], 0), (args[2], LANES // 2)):
            lanes = [ir.Constant(_I32, first + i) for i in range(LANES // 2)]
            part = builder.shuffle_vector(args[3], args[3], ir.Constant(ir.VectorType(_I32, LANES // 2), lanes))
            at = _element_pointer(builder, args[0], index, _F32)
            builder.store(part, builder.bitcast(at, half.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(target, types.int64, types.int64, f32x16), codegen


@intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """One fp32 in all lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), args[0], ir.Constant(_I32, 0))
        return builder.shuffle_vector(first, first, ir.Constant(_INT_VECTOR, [0] * LANES))

    return f32x16(types.float32), codegen


@intrinsic
def first_lane(typing_context: Any, x: Any) -> Any:
    """Lane 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(args[0], ir.Constant(_I32, 0))

    return types.float32(f32x16), codegen


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "llvm.fma", *args)

    return f32x16(f32x16, f32x16, f32x16), codegen


@intrinsic
def add(typing_context: Any, a: Any, b: Any) -> Any:
    return f32x16(f32x16, f32x16), lambda context, builder, signature, args: builder.fadd(*args)


@intrinsic
def subtract(typing_context: Any, a: Any, b: Any) -> Any:
    return f32x16(f32x16, f32x16), lambda context, builder, signature, args: builder.fsub(*args)


@intrinsic
def multiply(typing_context: Any, a: Any, b: Any) -> Any:
    return f32x16(f32x16, f32x16), lambda context, builder, signature, args: builder.fmul(*args)


@intrinsic
def divide(typing_context: Any, a: Any, b: Any) -> Any:
    return f32x16(f32x16, f32x16), lambda context, builder, signature, args: builder.fdiv(*args)


@intrinsic
def maximum(typing_context: Any, a: Any, b: Any) -> Any:
    """The larger of each lane; a lane that compares with NaN takes b."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return f32x16(f32x16, f32x16), codegen


@intrinsic
def keep_between(typing_context: Any, value: Any, low: Any, x: Any, high: Any, other: Any) -> Any:
    """Per lane: `value` where low <= x <= high, else `other`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, low, x, high, other = args
        inside = builder.and_(builder.fcmp_ordered("<=", low, x), builder.fcmp_ordered("<=", x, high))
        return builder.select(inside, value, other)

    return f32x16(f32x16, f32x16, f32x16, f32x16, f32x16), codegen


_EXP2_COEFFICIENTS = (1.535336188319500e-4, 1.339887440266574e-3, 9.618437357674640e-3, 5.550332471162809e-2)
_EXP2_TAIL = (2.402264791363012e-1, 6.931472028550421e-1, 1.0)


@intrinsic
def exp2(typing_context: Any, x: Any) -> Any:
    """2 ** x for x <= 0, relative error under 2e-7; exactly 0 from x = -127 down (denormals are not worth it).

    Range reduction to [-0.5, 0.5] and the degree-6 polynomial of Cephes' exp2f.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lowest = _constant(-127.0)
        x = builder.select(builder.fcmp_ordered(">", args[0], lowest), args[0], lowest)
        whole = _call(builder, "llvm.floor", builder.fadd(x, _constant(0.5)))
        fraction = builder.fsub(x, whole)
        power = _constant(_EXP2_COEFFICIENTS[0])
        for coefficient in _EXP2_COEFFICIENTS[1:] + _EXP2_TAIL:
            power = _call(builder, "llvm.fma", power, fraction, _constant(coefficient))
        exponent = builder.add(builder.fptosi(whole, _INT_VECTOR), _int_constant(127))
        scale = builder.bitcast(builder.shl(exponent, _int_constant(23)), _VECTOR)
        return builder.fmul(power, scale)

    return f32x16(f32x16), codegen


def _halves(builder: Any, x: Any, y: Any, group: int) -> tuple[Any, Any]:
    """Lanes in groups of `group`: the lower halves of x's and y's groups in turn, and the upper halves."""
    half = group // 2
    lower = [src + first + i for first in range(0, LANES, group) for src in (0, LANES) for i in range(half)]
    return tuple(
        builder.shuffle_vector(x, y, ir.Constant(_INT_VECTOR, [lane + shift for lane in lower])) for shift in (0, half)
    )


@intrinsic
def sum_each(
    typing_context: Any,
    v0: Any, v1: Any, v2: Any, v3: Any, v4: Any, v5: Any, v6: Any, v7: Any,
    v8: Any, v9: Any, v10: Any, v11: Any, v12: Any, v13: Any, v14: Any, v15: Any,
) -> Any:  # fmt: skip
    """Sixteen vectors to one: lane i is the sum of v_i's lanes, as a tree of 15 additions instead of 16 reductions."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, group = list(args), LANES
        while len(vectors) > 1:
            middle = len(vectors) // 2
            pairs = zip(vectors[:middle], vectors[middle:], strict=True)
            vectors = [builder.fadd(*_halves(builder, x, y, group)) for x, y in pairs]
            group //= 2
        return vectors[0]

    return f32x16(*[f32x16] * LANES), codegen


def _fold(builder: Any, value: Any, combine: Any) -> Any:
    """Reduce the lanes by halves."""
    width = LANES // 2
    while width:
        lanes = [(i + width) % LANES for i in range(LANES)]
        value = combine(value, builder.shuffle_vector(value, value, ir.Constant(_INT_VECTOR, lanes)))
        width //= 2
    return builder.extract_element(value, ir.Constant(_I32, 0))


@intrinsic
def sum_lanes(typing_context: Any, x: Any) -> Any:
    """The sum of the lanes, by halves."""
    return types.float32(f32x16), lambda context, builder, signature, args: _fold(builder, args[0], builder.fadd)


@intrinsic
def max_lanes(typing_context: Any, x: Any) -> Any:
    """The largest lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        return _fold(builder, args[0], larger)

    return types.float32(f32x16), codegen


@intrinsic
def prefetch(typing_context: Any, source: Any, index: Any) -> Any:
    """Ask for the cache line of source[index] in the L2 cache; harmless where the address is not mapped.

    L2 and not L1: L1 has few buffers for outstanding misses (24 on Zen 4), and pages of a KV cache lie where no
    hardware prefetcher expects them. Measured from memory on one core: 6 GB/s without, 8 with L1 and 15 with L2.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = builder.bitcast(
            _element_pointer(builder, args[0], args[1], _lane_type(source)), ir.IntType(8).as_pointer()
        )
        function_type = ir.FunctionType(ir.VoidType(), [at.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        builder.call(function, [at, *(ir.Constant(_I32, x) for x in (0, 1, 1))])
        return context.get_dummy_value()

    return types.void(source, types.int64), codegen
