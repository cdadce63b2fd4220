"""What processes that share memory need of the machine, for numba kernels: ordered words, futexes, a pause, a copy.

All loads and stores here are sequentially consistent, which makes them release and acquire as well: what one rank
wrote before a store is there for whoever loads the stored value, on Arm as on x86.
"""

import platform
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_MACHINE: Final = platform.machine()
_SYS_FUTEX: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}.get(_MACHINE)
_PAUSE: Final[dict[str, tuple[str, tuple[int, ...]]]] = {
    "x86_64": ("llvm.x86.sse2.pause", ()),
    "aarch64": ("llvm.aarch64.isb", (15,)),
}
"""LLVM intrinsics and their arguments. `yield` does nothing on most Arm cores; a barrier of instructions waits."""
_FUTEX_WAIT: Final = 0
_FUTEX_WAKE: Final = 1
_EVERYONE: Final = 0x7FFFFFFF


def _word(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I32.as_pointer())


@intrinsic
def load_word(typing_context: Any, address: Any) -> Any:
    """The uint32 at `address`, as int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(builder.load_atomic(_word(builder, args[0]), "seq_cst", 4, typ=_I32), _I64)

    return types.int64(types.int64), codegen


@intrinsic
def store_word(typing_context: Any, address: Any, value: Any) -> Any:
    """The lower 32 bits of `value` to `address`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(builder.trunc(args[1], _I32), _word(builder, args[0]), "seq_cst", 4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _futex(builder: Any, *args: Any) -> None:
    """`syscall(SYS_futex, ...)` of the C library. Without FUTEX_PRIVATE_FLAG: the waiters are other processes. What
    it returns is of no use: whoever waited looks at the word."""
    if _SYS_FUTEX is None:
        raise NotImplementedError(f"no futex number is known for {_MACHINE}")
    function_type = ir.FunctionType(_I64, [_I64], var_arg=True)
    function = cgutils.get_or_insert_function(builder.module, function_type, "syscall")
    builder.call(function, [_I64(_SYS_FUTEX), *args])


@intrinsic
def futex_wait(typing_context: Any, address: Any, value: Any, timeout: Any) -> Any:
    """Sleep while the word at `address` is `value`, no longer than the timespec at `timeout`; also ends early on a
    signal, or for no reason."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _futex(builder, args[0], _I64(_FUTEX_WAIT), args[1], args[2], _I64(0), _I64(0))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def futex_wake(typing_context: Any, address: Any) -> Any:
    """Wake all that sleep on the word at `address`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _futex(builder, args[0], _I64(_FUTEX_WAKE), _I64(_EVERYONE), _I64(0), _I64(0), _I64(0))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def pause(typing_context: Any) -> Any:
    """Between two looks of a spinning loop: 24 ns on Zen 4, in which the core's other thread has the units."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _MACHINE in _PAUSE:
            name, values = _PAUSE[_MACHINE]
            function_type = ir.FunctionType(ir.VoidType(), [_I32] * len(values))
            builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), map(_I32, values))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_core(typing_context: Any) -> Any:
    """Lets another thread that is ready to run have this core."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I32, []), "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def copy_bytes(typing_context: Any, target: Any, source: Any, num_bytes: Any) -> Any:
    """memcpy between addresses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointers = [builder.inttoptr(address, _I8.as_pointer()) for address in args[:2]]
        cgutils.raw_memcpy(builder, *pointers, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen
