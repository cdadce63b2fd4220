"""Linear layers in the form that is fastest for their dtype and this machine."""

import logging
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from albireo.gpu_worker.backend import Linear
from albireo.gpu_worker.kernels.launch import is_capturing
from albireo.gpu_worker.kernels.skinny_product import (
    BLOCK,
    LONG_ROW,
    max_rows,
    packed_as_expected,
    run_pairs,
    skinny_product_kernel,
)

logger = logging.getLogger(__name__)

_SUMS_ALIKE: Final[dict[int, bool]] = {}
"""By number of input features: whether our kernel's bits are oneDNN's."""
_ONE_THREAD_BYTES: Final = 512 * 1024
"""A weight up to this size is read by one thread before a second one is there (measured in steps of two)."""
_ONE_THREAD_WORK: Final = 8 * _ONE_THREAD_BYTES
"""The same for rows times bytes: so much arithmetic takes as long as reading a weight of that size."""


class PlainLinear:
    """A weight as the checkpoint has it, `[out_features, in_features]`."""

    is_kernel = False

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._transposed = weight.t()
        self._bias = bias

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        product = functional.linear(x, self._weight, self._bias)
        return product if out is None else out.copy_(product)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        if self._bias is not None:
            residual = residual + self._bias
        return torch.addmm(residual, x, self._transposed)


class PackedLinear:
    """A weight that oneDNN has laid out for its kernels once, instead of in every call; the original is dropped.

    In bf16, up to `max_rows` rows go to our own kernel, which reads the same packed bytes, if it knows their layout.
    A row's bits do not depend on how many rows there are: a request gets the same logits alone and in any batch.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.contiguous()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias
        self._skinny = SkinnyProduct(weight, self._packed, bias) if packed_as_expected(weight, self._packed) else None
        if self._skinny is not None and not self._sums_alike(weight.shape[1]):
            self._skinny = None
        self._skinny_rows = 0 if self._skinny is None else max_rows()
        self.is_kernel = self._skinny is not None
        # With one row, and only then, oneDNN sums long rows of the weight in other runs.
        self._rows_alone = 1 if self._skinny is None and weight.shape[1] > LONG_ROW else 0

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        if self._skinny is not None and x.shape[0] <= self._skinny_rows:
            return self._skinny(x, None, out)
        product = self._by_onednn(x)
        return product if out is None else out.copy_(product)

    def _sums_alike(self, in_features: int) -> bool:
        """Whether our kernel gives oneDNN's bits on this machine: where oneDNN has other instructions (AMX), it sums in
        another order. Asked once for each number of input features, which is what the order depends on."""
        known = _SUMS_ALIKE.get(in_features)
        if known is None:
            self._rows_alone = 0
            generator = torch.Generator().manual_seed(in_features)
            x = torch.randn(max_rows(), in_features, generator=generator).bfloat16()
            assert self._skinny is not None
            known = all(torch.equal(self._skinny(x[:n], None), self._by_onednn(x[:n])) for n in {2, 3, max_rows()})
            _SUMS_ALIKE[in_features] = known
            if not known:
                logger.warning("oneDNN sums %d inputs in another order here: its kernel is used alone", in_features)
        return known

    def _by_onednn(self, x: Tensor) -> Tensor:
        if self._rows_alone and x.shape[0] == self._rows_alone:
            return self._by_onednn(torch.cat((x, x)))[:1]
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return product

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        if self._skinny is not None and x.shape[0] <= self._skinny_rows:
            return self._skinny(x, residual)
        if self._rows_alone and x.shape[0] == self._rows_alone:
            return self.add_to(torch.cat((residual, residual)), torch.cat((x, x)))[:1]
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._packed, self._bias, "add")
        return out


class SkinnyProduct:
    """One packed weight's product with 1 to `max_rows` rows, by `skinny_product_kernel`."""

    def __init__(self, weight: Tensor, packed: Tensor, bias: Tensor | None) -> None:
        """`packed` must outlive this object, and have the layout that `packed_as_expected` checks."""
        self._out_features, in_features = weight.shape
        self._blocks = self._out_features // BLOCK
        self._pairs = in_features // 2
        self._run = run_pairs(in_features)
        self._weight: int = torch.ops.mkldnn.data_ptr(packed)
        self._bias = bias
        self._bias_address = 0 if bias is None else bias.data_ptr()
        self._kernel = skinny_product_kernel()
        self._threads = torch.get_num_threads()
        self._rows_for_one = 0 if weight.nbytes > _ONE_THREAD_BYTES else _ONE_THREAD_WORK // weight.nbytes
        # a few turns per thread even out what else the cores are doing; one turn is at least a block
        self._chunk = max(1, self._blocks // (4 * self._threads))
        self._counter = np.zeros(1, np.int64)
        self._counter_address: int = self._counter.ctypes.data

    def __call__(self, x: Tensor, residual: Tensor | None, out: Tensor | None = None) -> Tensor:
        """bf16 x `[n, in_features]`, contiguous -> `[n, out_features]`, plus `residual` if given; in `out` if given."""
        rows = x.shape[0]
        if out is None:
            out = torch.empty(rows, self._out_features, dtype=torch.bfloat16)
        # within a program the team is together already
        alone = self._threads == 1 or (rows <= self._rows_for_one and not is_capturing())
        self._counter[0] = 0
        arguments = (
            self._counter_address,
            self._blocks if alone else self._chunk,
            self._blocks,
            self._pairs,
            self._run,
            rows,
            self._weight,
            x.data_ptr(),
            self._bias_address,
            0 if residual is None else residual.data_ptr(),
            out.data_ptr(),
        )
        self._kernel(arguments, 1 if alone else self._threads)
        return out


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The faster form for the weight's dtype on this machine: packed where oneDNN has kernels for it.

    CPU time on one thread (AMD EPYC, AVX512-BF16) of all products of a step, plain / packed, in ms. Zen 5, bf16: 0.6B
    parameters 77 / 31 at 1 row, 152 / 87 at 32; 11.5M parameters 2.2 / 0.7 at 1 row, 3.8 / 2.1 at 32, 8.3 / 7.3 at
    128. Zen 4, fp32: 11.5M parameters 6.1 / 5.4, 17 / 11 and 45 / 35.
    """
    packs: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if weight.dtype == torch.bfloat16:
        packs = packs and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return PackedLinear(weight, bias) if packs else PlainLinear(weight, bias)
