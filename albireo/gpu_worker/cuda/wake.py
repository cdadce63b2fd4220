"""Waking a thread that sleeps in poll from one of CUDA's: a C function that adds 1 to an eventfd and needs no
interpreter, so it neither waits for Python nor holds it up."""

import ctypes
import os
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import carray, cfunc, types

_libc_write = ctypes.CDLL(None).write
_libc_write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_libc_write.restype = ctypes.c_ssize_t


@cfunc(types.void(types.voidptr))
def _ring(argument: Any) -> None:
    record = carray(argument, 2, np.int64)
    _libc_write(np.int32(record[0]), record[1:].ctypes, 8)


_RECORDS: Final[list[npt.NDArray[np.int64]]] = []
"""Kept for good: the driver may ring a last time when the object is gone."""


class Wake:
    """An eventfd whose count is how often it was rung and nobody has looked."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._record = np.array([self.fd, 1], np.int64)
        _RECORDS.append(self._record)
        self.function: int = _ring.address
        """A C function `void(void *)` that rings; of its `argument`."""
        self.argument: int = self._record.ctypes.data

    def take(self) -> int:
        """How often it was rung since the last call."""
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self.fd)
