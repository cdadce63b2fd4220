"""Memory for tensors of captured steps: what CUDA graphs call a private pool.

A program writes to the same places whenever it runs, so nobody else may get them. Within a program, memory that a
tensor gave back is given to a later one, as it was at capture: calls run in the order in which they were captured.
Programs never run at the same time, so all of them share one pool.
"""

import math
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_HARMLESS: Final = {
    "__get__", "__getitem__", "contiguous", "data_ptr", "element_size", "is_contiguous", "numel", "stride", "view",
}  # fmt: skip
"""What torch may do during a capture beside giving memory: look at it in another way. Anything else would be left out
of the program."""


class NotCapturableError(Exception):
    """A step computes with something else than kernels."""


class CapturePool:
    """Blocks of memory, which live as long as the pool."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[npt.NDArray[np.uint8]]] = defaultdict(list)
        """By size in bytes."""
        self.num_bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor whose memory goes back to the pool when neither it nor a view of it is left."""
        size = max(math.prod(shape) * dtype.itemsize, 1)
        free = self._free[size]
        if not free:
            # aligned as torch's own memory is: kernels load whole vectors
            memory = np.empty(size + 64, np.uint8)
            start = -memory.ctypes.data % 64
            free.append(memory[start : start + size])
            self.num_bytes += size
        block = free.pop()
        lent = block[:]  # torch holds on to this array for as long as any tensor needs it
        weakref.finalize(lent, free.append, block)
        return torch.from_numpy(lent)[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


class CaptureTensors(TorchFunctionMode):
    """While it is on, new tensors come from the pool, and torch may compute nothing. Raises NotCapturableError."""

    def __init__(self, pool: CapturePool) -> None:
        super().__init__()
        self._pool = pool

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is torch.empty:
            shape = args if isinstance(args[0], int) else args[0]
            return self._pool.empty(tuple(shape), options.get("dtype", torch.float32))
        if func is torch.empty_like:
            return self._pool.empty(tuple(args[0].shape), args[0].dtype)
        if func.__name__ not in _HARMLESS:
            raise NotCapturableError(f"torch.{func.__name__}")
        return func(*args, **options)
