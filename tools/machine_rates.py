"""What this machine can do at best in this very minute: bytes read a second, and bf16 operations a second."""

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from numba import carray

from albireo.gpu_worker.kernels.launch import Kernel
from albireo.gpu_worker.kernels.simd import add, fetch_add, load, pointer, splat, store

Clock = Callable[[], float]

CHUNK: Final = 1 << 16
"""fp32 numbers that a thread reads at a time: 256 KiB."""
MAX_BYTES: Final = 2 << 30
"""More is not read: it is no faster than this."""
_ARGUMENTS = np.dtype([("counter", "<i8"), ("size", "<i8"), ("source", "<i8"), ("sums", "<i8")])
_ZERO: Final = np.float32(0)


def _read_kernel() -> Kernel:
    """Reads `size` chunks from `source` on, four vectors at a time; leaves 16 sums so that nothing is skipped."""

    def read_all(arguments: npt.NDArray[Any]) -> None:
        a = carray(arguments, 1)[0]
        source = pointer(a.source, np.float32)
        s0, s1, s2, s3 = splat(_ZERO), splat(_ZERO), splat(_ZERO), splat(_ZERO)
        while True:
            chunk = fetch_add(a.counter, 1)
            if chunk >= a.size:
                break
            for i in range(chunk * CHUNK, (chunk + 1) * CHUNK, 64):
                s0, s1 = add(s0, load(source, i)), add(s1, load(source, i + 16))
                s2, s3 = add(s2, load(source, i + 32)), add(s3, load(source, i + 48))
        store(pointer(a.sums, np.float32), 0, add(add(s0, s1), add(s2, s3)))

    return Kernel(read_all, _ARGUMENTS)


class MachineRates:
    """Measures on `threads` threads of torch's team. Holds as much memory as it reads."""

    def __init__(self, nbytes: int, threads: int, clock: Clock) -> None:
        """`nbytes`: the longest reading, cut to `MAX_BYTES`."""
        self._threads = threads
        self._clock = clock
        self._chunks = -(-min(nbytes, MAX_BYTES) // (4 * CHUNK))
        self._memory = torch.ones(self._chunks * CHUNK)
        self._read = _read_kernel()
        self._counter = np.zeros(1, np.int64)
        self._sums = np.zeros(16, np.float32)
        self._x = torch.randn(512, 1024).to(torch.bfloat16)
        self._weight = torch.randn(4096, 1024).to(torch.bfloat16)

    def bytes_per_second(self, nbytes: int, repeats: int = 3) -> float:
        """The best of a few readings of the first `nbytes`, or of all there is."""
        chunks = min(self._chunks, max(1, nbytes // (4 * CHUNK)))

        def read() -> None:
            self._counter[0] = 0
            addresses = self._memory.data_ptr(), self._sums.ctypes.data
            self._read((self._counter.ctypes.data, chunks, *addresses), self._threads)

        return 4 * CHUNK * chunks / self._least(read, repeats)

    def flops_per_second(self, repeats: int = 5) -> float:
        """The best of a few bf16 products of 512 rows: packed ones, where oneDNN has them for this CPU."""
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            packed = torch.ops.mkldnn._reorder_linear_weight(self._weight)

            def multiply() -> None:
                torch.ops.mkldnn._linear_pointwise(self._x, packed, None, "none", [], "")
        else:

            def multiply() -> None:
                torch.nn.functional.linear(self._x, self._weight)

        return 2 * self._x.shape[0] * self._weight.numel() / self._least(multiply, repeats)

    def _least(self, run: Callable[[], None], repeats: int) -> float:
        run()
        times = []
        for _ in range(repeats):
            start = self._clock()
            run()
            times.append(self._clock() - start)
        return min(times)


def clock_for(threads: int) -> Clock:
    """The thread's CPU time where there is one, which other programs hardly disturb; else the wall clock."""
    return time.thread_time if threads == 1 else time.perf_counter
