"""The few calls of the CUDA driver that torch does not offer, by ctypes; `libcuda.so.1` comes with the GPU's driver and
keeps its interface from version to version. torch must have made its context on this thread."""

import ctypes
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_PORTABLE: Final = 0x01
_DEVICE_MAP: Final = 0x02


_PINNED: Final[list[npt.NDArray[np.uint8]]] = []
"""What is pinned: were it unmapped, its addresses could be somebody else's while the driver holds the pages."""


class CudaDriverError(Exception):
    """A call of the driver failed; the text has its name and the driver's."""


class CudaDriver:
    """Raises OSError where there is no driver."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        pointer, uint = ctypes.c_void_p, ctypes.c_uint
        self._register = self._function("cuMemHostRegister_v2", pointer, ctypes.c_size_t, uint)
        self._copy = self._function("cuMemcpyAsync", pointer, pointer, ctypes.c_size_t, pointer)
        self._launch_host_func = self._function("cuLaunchHostFunc", pointer, pointer, pointer)

    def register(self, memory: npt.NDArray[np.uint8]) -> None:
        """Pins host memory, whole pages, so that the device reads and writes it in place at the same address. It stays
        pinned, and mapped, as long as the process lives."""
        self._check("cuMemHostRegister", self._register(memory.ctypes.data, memory.size, _PORTABLE | _DEVICE_MAP))
        _PINNED.append(memory)

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Between pinned host memory and the device, in the order of `stream`; returns at once."""
        self._check("cuMemcpyAsync", self._copy(target, source, nbytes, stream))

    def call_after(self, stream: int, function: int, argument: int) -> None:
        """A thread of the driver's calls the C function `void(void *)` at `function` once all that was launched on
        `stream` so far is done. The function may not call CUDA."""
        self._check("cuLaunchHostFunc", self._launch_host_func(stream, function, argument))

    def _function(self, name: str, *argument_types: Any) -> Any:
        function = getattr(self._cuda, name)
        function.argtypes, function.restype = argument_types, ctypes.c_int
        return function

    def _check(self, call: str, code: int) -> None:
        if code:
            name = ctypes.c_char_p()
            self._cuda.cuGetErrorName(code, ctypes.byref(name))
            raise CudaDriverError(f"{call} failed: {(name.value or b'').decode() or code}")
