"""Compile a numba kernel to a C function and run it on the threads that torch already has.

torch and numba each bring an OpenMP runtime; used in turns, the idle threads of one spin while the other works
(measured on two cores: 1.3 to 3 times slower than either alone). So numba's own threading is not used at all: a
kernel is a plain C function of one pointer, and torch's OpenMP runtime runs it on torch's team, through the entry
point that compilers emit for `#pragma omp parallel`.
"""

import ctypes
import fcntl
import hashlib
import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import cfunc, types
from numba.np.numpy_support import from_dtype

logger = logging.getLogger(__name__)

INLINED = {"forceinline": True, "error_model": "numpy"}
"""numba options of the functions that a kernel is made of: inlined, so that what it knows reaches their loops."""
CALLED = {"error_model": "numpy"}
"""The same for those that are large, and long against a call: every level of inlining is optimised anew, and without
such breaks a kernel compiles for twice as long."""


@cache
def _source_revision() -> str:
    """Digest of all kernel sources. numba's cache looks only at the file of the function itself, not at its callees."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    others = ("attention", "sampling", "collectives")
    for file in sorted(
        [*folder.glob("*.py"), *(file for name in others for file in (folder.parent / name).glob("*.py"))]
    ):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


class _Compiling:
    """How this process compiles; set once, before the first kernel is made."""

    locks: Path | None = None
    on_first_compile: Callable[[], None] | None = None


def compile_in_turns(folder: str, on_first_compile: Callable[[], None] | None = None) -> None:
    """From now on, of the processes that name the same private folder one compiles a kernel while the others wait and
    then load it: ranks start together, and on few cores each would compile everything at the same time. Empty: this
    one is alone.

    `on_first_compile` is called once, after the first kernel that the cache did not have: more will be missing.
    """
    _Compiling.locks = Path(folder) if folder else None
    _Compiling.on_first_compile = on_first_compile


@contextmanager
def _turn(name: str) -> Iterator[None]:
    if _Compiling.locks is None:
        yield
        return
    with (_Compiling.locks / f"compile-{name}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(function: Callable[[Any], None], arguments: np.dtype[np.void]) -> Any:
    """The C function, from the cache or put into it. Raises RuntimeError where no folder for a cache is writable."""
    with _turn(function.__name__):
        compiled = cfunc(types.void(types.CPointer(from_dtype(arguments))), cache=True, error_model="numpy")(function)
    callback = _Compiling.on_first_compile
    if compiled.cache_hits == 0 and callback is not None:
        _Compiling.on_first_compile = None
        callback()
    return compiled


class Call(NamedTuple):
    """A kernel's call that was captured instead of made."""

    function: int
    """Address of the compiled function."""
    record: bytes
    """Its arguments."""
    num_threads: int
    num_counters: int
    """int64 that the record's first field points to, to be 0 when the kernel starts."""


_captures: list[list[Call]] = []
"""The capture under way, if there is one."""


@contextmanager
def capture() -> Iterator[list[Call]]:
    """Inside, calls of kernels are noted and not made. Not for two threads at once, nor nested."""
    assert not _captures, "a capture within a capture"
    calls: list[Call] = []
    _captures.append(calls)
    try:
        yield calls
    finally:
        _captures.clear()


def is_capturing() -> bool:
    """Whether calls are noted for a program (`kernels.program`), whose threads are together already: sharing out work
    costs under a microsecond there, and not the 10 that it takes to call a team."""
    return bool(_captures)


class Kernel:
    """A compiled C function `void(record *arguments)` that every thread of the team enters once.

    Compiling takes seconds, loading from numba's cache (beside the source, or in the user's cache directory) about
    10 ms. Threads share out the work themselves, through counters in memory that `arguments` points to.
    """

    def __init__(self, function: Callable[[Any], None], arguments: np.dtype[np.void]) -> None:
        function.__qualname__ = f"{function.__name__}_{_source_revision()}"
        try:
            compiled = _compile(function, arguments)
        except RuntimeError as error:
            # no writable cache directory (a read-only package and home): the start is slow, the server works
            logger.warning("kernel %s is compiled at every start: %s", function.__name__, error)
            signature = types.void(types.CPointer(from_dtype(arguments)))
            compiled = cfunc(signature, error_model="numpy")(function)
        self._compiled = compiled  # owns the machine code
        self._address: int = compiled.address
        record = np.zeros(1, arguments)
        self._buffer = record.data.cast("B")
        self._arguments_address: int = record.ctypes.data
        # a third of the time of assigning a tuple to the record
        self._pack_into = struct.Struct(_struct_format(arguments)).pack_into
        assert arguments.names is not None
        self._num_counters = {"counter": 1, "counters": 2}.get(arguments.names[0], 0)
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)

    def __call__(self, arguments: tuple[float, ...], num_threads: int) -> None:
        """Run on `num_threads` threads of torch's team and return when all are done. Does not hold the GIL.

        `arguments` are the record's fields; what addresses among them point to has to outlive the call. Not for two
        threads at once: the record is the kernel's.
        """
        self._pack_into(self._buffer, 0, *arguments)
        if _captures:
            _captures[0].append(Call(self._address, bytes(self._buffer), num_threads, self._num_counters))
            return
        team = openmp_team()
        if num_threads == 1 or team is None:
            self._call(self._arguments_address)
        else:
            team(self._address, self._arguments_address, num_threads, 0)


def _struct_format(record: np.dtype[np.void]) -> str:
    """The format of `struct` for a record of int64 and float32 fields without gaps."""
    assert record.fields is not None
    codes = {np.dtype(np.int64): "q", np.dtype(np.float32): "f"}
    return "<" + "".join(codes[field[0]] for field in record.fields.values())


@cache
def openmp_team() -> Callable[[int, int, int, int], None] | None:
    """`GOMP_parallel(function, data, num_threads, flags)` of the runtime that torch calls; None: one thread only.

    The process-wide symbol comes first, since that is what torch itself binds to under LD_PRELOAD. Runtimes of Intel
    and LLVM export the same entry point on Linux.
    """
    libraries = [None, str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")]
    for library in libraries:
        try:
            team = ctypes.CDLL(library).GOMP_parallel
        except (OSError, AttributeError):
            continue
        team.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        team.restype = None
        return team
    logger.warning("torch's OpenMP runtime has no GOMP_parallel; attention runs on one thread")
    return None
