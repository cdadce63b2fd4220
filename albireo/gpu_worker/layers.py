"""Linear layers in the form that is fastest for their dtype and this machine."""

from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from albireo.gpu_worker.kernels.launch import is_capturing
from albireo.gpu_worker.kernels.skinny_product import (
    BLOCK,
    LONG_ROW,
    MAX_ROWS,
    packed_as_expected,
    run_pairs,
    skinny_product_kernel,
)

_ONE_THREAD_BYTES: Final = 512 * 1024
"""A weight up to this size is read by one thread before a second one is there (measured in steps of two)."""


class Linear(Protocol):
    """x `[n, in_features]` -> `[n, out_features]`, bias included."""

    is_kernel: bool
    """Whether products of up to `MAX_ROWS` rows are one kernel's call, which a program can hold."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual `[n, out_features]` + the product, as a new tensor, in one call."""


class PlainLinear:
    """A weight as the checkpoint has it, `[out_features, in_features]`."""

    is_kernel = False

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._transposed = weight.t()
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight, self._bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        if self._bias is not None:
            residual = residual + self._bias
        return torch.addmm(residual, x, self._transposed)


class PackedLinear:
    """A weight that oneDNN has laid out for its kernels once, instead of in every call; the original is dropped.

    In bf16, up to `MAX_ROWS` rows go to our own kernel, which reads the same packed bytes, if it knows their layout.
    A row's bits do not depend on how many rows there are: a request gets the same logits alone and in any batch.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.contiguous()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias
        self._skinny = SkinnyProduct(weight, self._packed, bias) if packed_as_expected(weight, self._packed) else None
        # With one row, and only then, oneDNN sums long rows of the weight in other runs.
        self.is_kernel = self._skinny is not None
        self._rows_alone = 1 if self._skinny is None and weight.shape[1] > LONG_ROW else 0

    def __call__(self, x: Tensor) -> Tensor:
        if self._skinny is not None and x.shape[0] <= MAX_ROWS:
            return self._skinny(x, None)
        if x.shape[0] == self._rows_alone:
            return self(torch.cat((x, x)))[:1]
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return out

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        if self._skinny is not None and x.shape[0] <= MAX_ROWS:
            return self._skinny(x, residual)
        if x.shape[0] == self._rows_alone:
            return self.add_to(torch.cat((residual, residual)), torch.cat((x, x)))[:1]
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._packed, self._bias, "add")
        return out


class SkinnyProduct:
    """One packed weight's product with 1 to `MAX_ROWS` rows, by `skinny_product_kernel`."""

    def __init__(self, weight: Tensor, packed: Tensor, bias: Tensor | None) -> None:
        """`packed` must outlive this object, and have the layout that `packed_as_expected` checks."""
        self._out_features, in_features = weight.shape
        self._blocks = self._out_features // BLOCK
        self._pairs = in_features // 2
        self._run = run_pairs(in_features)
        self._weight: int = torch.ops.mkldnn.data_ptr(packed)
        self._bias = bias
        self._bias_address = 0 if bias is None else bias.data_ptr()
        self._kernels = [skinny_product_kernel(rows) for rows in range(1, MAX_ROWS + 1)]
        self._threads = torch.get_num_threads() if weight.nbytes > _ONE_THREAD_BYTES else 1
        self._chunk = self._turn(self._threads)
        self._counter = np.zeros(1, np.int64)
        self._counter_address: int = self._counter.ctypes.data

    def __call__(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """bf16 x `[n, in_features]`, contiguous -> `[n, out_features]`, plus `residual` if given."""
        out = torch.empty(x.shape[0], self._out_features, dtype=torch.bfloat16)
        threads, chunk = self._threads, self._chunk
        if is_capturing():
            threads = torch.get_num_threads()
            chunk = self._turn(threads)
        self._counter[0] = 0
        arguments = (
            self._counter_address,
            chunk,
            self._blocks,
            self._pairs,
            self._run,
            self._weight,
            x.data_ptr(),
            self._bias_address,
            0 if residual is None else residual.data_ptr(),
            out.data_ptr(),
        )
        self._kernels[x.shape[0] - 1](arguments, threads)
        return out

    def _turn(self, threads: int) -> int:
        """Blocks that a thread takes at a time: a few turns each even out what else the cores are doing."""
        return max(1, self._blocks // (4 * threads)) if threads > 1 else self._blocks


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The faster form for the weight's dtype on this machine: packed where oneDNN has kernels for it.

    CPU time on one thread (AMD EPYC, AVX512-BF16) of all products of a step, plain / packed, in ms: 0.6B parameters
    in bf16 144 / 83 at 1 row, 295 / 223 at 32; 11.5M parameters in bf16 4.1 / 3.1 at 1 row, 7.7 / 5.9 at 32 and 17 /
    15 at 128, in fp32 6.1 / 5.4, 17 / 11 and 45 / 35.
    """
    packs: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if weight.dtype == torch.bfloat16:
        packs = packs and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return PackedLinear(weight, bias) if packs else PlainLinear(weight, bias)
