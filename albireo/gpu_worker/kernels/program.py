"""Many kernels in one call: what a CUDA graph is on a GPU.

A step of a few rows is some eighty short kernels; called one by one from Python, most of its time goes into calling
them and into waking the other threads each time. A program is the list of calls as `launch.capture` noted them, run by
one team.

The thread that comes first makes every call, one after the other. The others look for the call that is under way and
join it: kernels share out their work through counters, so a thread may come at any time, or not at all. The first one
closes a call when it finds no work left in it, and waits only for those that had joined by then. So a thread that wakes
late, or has lost its core to another process, holds up nobody but the piece of work that it has taken.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import carray, njit
from numba.core import types
from numba.extending import intrinsic

from albireo.gpu_worker.collectives.atomics import load_word, pause, store_word, yield_core
from albireo.gpu_worker.kernels.launch import CALLED, INLINED, Call, Kernel
from albireo.gpu_worker.kernels.simd import fetch_add, pointer

OPERATION: Final = np.dtype(
    {
        "names": ["function", "record", "threads", "counters", "num_counters", "joined", "done"],
        "formats": ["<i8"] * 7,
        "offsets": [0, 8, 16, 24, 32, 64, 72],
        "itemsize": 128,
    }
)
"""A kernel's call, which up to `threads` threads make; the `num_counters` int64 at `counters` are 0 when it begins.
`joined`: threads that have come to help, and CLOSED once that is too late; `done`: those of them that are through."""
PROGRAM: Final = np.dtype(
    [
        ("operations", "<i8"),  # OPERATION [num_operations]
        ("num_operations", "<i8"),
        ("state", "<i8"),  # int64 [_STATE_SIZE]
        ("heartbeat", "<i8"),  # int64, counted up at every operation
    ]
)
CLOSED: Final = 1 << 32
PATIENCE: Final = 4000
"""Looks that a helping thread takes, some 100 microseconds, before it leaves for good; the first thread then does
the rest. Work comes every few microseconds unless the caller has lost its core."""
STUBBORN: Final = 1000
"""Looks that the first thread takes for a helper to be through, before it begins to yield its core."""

_FIELDS = {name: OPERATION.fields[name][1] for name in OPERATION.names or ()}  # type: ignore[index]
_SIZE: Final = OPERATION.itemsize
_FUNCTION, _RECORD, _THREADS, _COUNTERS, _NUM_COUNTERS, _JOINED, _DONE = _FIELDS.values()
_ENTERED: Final = 0
"""Offset in bytes into the state: threads that have entered."""
_CURRENT: Final = 64
"""1 + the operation that is under way; 0 before the first; beyond the last at the end."""
_STATE_SIZE: Final = 16


@intrinsic
def _call(typing_context: Any, function: Any, record: Any) -> Any:
    """Calls the C function void(record *) at the address `function`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        argument = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [argument])
        target = builder.inttoptr(args[0], function_type.as_pointer())
        builder.call(target, [builder.inttoptr(args[1], argument)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@njit(**INLINED)
def _field(operation: Any, offset: Any) -> Any:
    return pointer(operation + offset, np.int64)[0]


@njit(**CALLED)
def _lead(a: Any) -> None:
    """One thread's part: every operation, in order."""
    for index in range(a.num_operations):
        operation = a.operations + _SIZE * index
        counters = pointer(_field(operation, _COUNTERS), np.int64)
        for counter in range(_field(operation, _NUM_COUNTERS)):
            counters[counter] = 0
        store_word(a.state + _CURRENT, index + 1)
        pointer(a.heartbeat, np.int64)[0] += 1
        _call(_field(operation, _FUNCTION), _field(operation, _RECORD))
        if _field(operation, _THREADS) == 1:
            continue
        joined = fetch_add(operation + _JOINED, CLOSED)
        looks = 0
        while load_word(operation + _DONE) < joined:
            looks += 1
            if looks > STUBBORN:
                yield_core()
            pause()
    store_word(a.state + _CURRENT, a.num_operations + 1)


@njit(**CALLED)
def _help(a: Any) -> None:
    """Another thread's part: joins the operation that is under way, until there is none for a while."""
    seen = 0
    looks = 0
    while looks < PATIENCE:
        current = load_word(a.state + _CURRENT)
        if current > a.num_operations:
            return
        if current == seen:
            looks += 1
            pause()
            continue
        seen = current
        looks = 0
        operation = a.operations + _SIZE * (current - 1)
        if _field(operation, _THREADS) > 1 and fetch_add(operation + _JOINED, 1) < CLOSED:
            _call(_field(operation, _FUNCTION), _field(operation, _RECORD))
            fetch_add(operation + _DONE, 1)


@cache
def _program_kernel() -> Kernel:
    def run_program(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        if fetch_add(a.state + _ENTERED, 1) == 0:
            _lead(a)
        else:
            _help(a)

    return Kernel(run_program, PROGRAM)


class Program:
    """A list of captured calls. Whoever makes one keeps alive what their records point to.

    Used by the worker's main thread; `num_threads` as of its making.
    """

    def __init__(self, calls: Sequence[Call], num_threads: int, heartbeat_address: int = 0) -> None:
        """`heartbeat_address`: of an int64 that shows that the program gets on, if there is one."""
        self._records = [np.frombuffer(bytearray(call.record), np.int64) for call in calls]
        self._operations = np.zeros(len(calls), OPERATION)
        for index, (call, record) in enumerate(zip(calls, self._records, strict=True)):
            counters = int(record[0]) if call.num_counters else 0
            values = (call.function, record.ctypes.data, call.num_threads, counters, call.num_counters, 0, 0)
            self._operations[index] = values
        self._joined, self._done = self._operations["joined"], self._operations["done"]
        self._state = np.zeros(_STATE_SIZE, np.int64)
        self._num_threads = num_threads
        self._kernel = _program_kernel()
        self._no_heartbeat = np.zeros(1, np.int64)
        heartbeat = heartbeat_address or self._no_heartbeat.ctypes.data
        self._arguments = (self._operations.ctypes.data, len(calls), self._state.ctypes.data, heartbeat)

    def __call__(self) -> None:
        """Makes all calls in order; what one writes, the next one reads. Does not hold the GIL."""
        self._joined[:] = 0
        self._done[:] = 0
        self._state[:] = 0
        self._kernel(self._arguments, self._num_threads)
