"""Adding up the ranks' buffers, for the kernels of `shm_kernels`.

Functions of the module, which take the element's type as an argument: a kernel that closes over a function made for it
is not found again in numba's cache.
"""

from typing import Any, Final

import numpy as np
from numba import njit, types
from numba.extending import overload

from albireo.gpu_worker.kernels.launch import CALLED
from albireo.gpu_worker.kernels.simd import add, load, pointer, store

Element = Any
"""np.uint16, which holds bf16, or np.float32; mypy calls the union of the two types unhashable."""
BLOCK: Final = 64
"""Elements that are summed at a time: four vectors hide the latency of an addition."""


def _widened(raw: Any) -> Any:
    """An element as float32; for compiled code only."""
    raise NotImplementedError


@overload(_widened, strict=False)
def _overload_widened(raw: Any) -> Any:
    if isinstance(raw, types.Float):
        return lambda raw: raw
    return lambda raw: np.uint32(np.uint32(raw) << np.uint32(16)).view(np.float32)


def _rounded(value: Any, element: Element) -> Any:
    """A float32 as an element, rounded to nearest even; for compiled code only."""
    raise NotImplementedError


@overload(_rounded, strict=False)
def _overload_rounded(value: Any, element: Any) -> Any:
    if element.instance_type == types.float32:
        return lambda value, element: value

    def to_bf16(value: Any, element: Any) -> Any:
        bits = np.float32(value).view(np.uint32)
        return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

    return to_bf16


@njit(**CALLED)
def add_up(element: Element, first: Any, stride: Any, size: Any, residual: Any, out: Any, length: Any) -> None:
    """out[:length] = the sum over r of the elements at first + r * stride bytes, in this order, + the residual's unless
    its address is 0; in fp32, rounded once to `element` (np.uint16: bf16). Addresses and sizes."""
    target, addend = pointer(out, element), pointer(residual, element)
    whole = length // BLOCK * BLOCK
    for j in range(0, whole, BLOCK):
        part = pointer(first, element)
        x0, x1, x2, x3 = load(part, j), load(part, j + 16), load(part, j + 32), load(part, j + 48)
        for r in range(1, size):
            part = pointer(first + r * stride, element)
            x0, x1 = add(x0, load(part, j)), add(x1, load(part, j + 16))
            x2, x3 = add(x2, load(part, j + 32)), add(x3, load(part, j + 48))
        if residual != 0:
            x0, x1 = add(x0, load(addend, j)), add(x1, load(addend, j + 16))
            x2, x3 = add(x2, load(addend, j + 32)), add(x3, load(addend, j + 48))
        store(target, j, x0)
        store(target, j + 16, x1)
        store(target, j + 32, x2)
        store(target, j + 48, x3)
    for j in range(whole, length):
        total = np.float32(_widened(pointer(first, element)[j]))
        for r in range(1, size):
            total = np.float32(total + _widened(pointer(first + r * stride, element)[j]))
        if residual != 0:
            total = np.float32(total + _widened(addend[j]))
        target[j] = _rounded(total, element)
