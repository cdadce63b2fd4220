"""Linear layers on the GPU: our own kernels while reading the weight is all that costs, cuBLAS from there on."""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from albireo.gpu_worker.cuda.gemv import GemvTiles, Norm, gemv
from albireo.gpu_worker.cuda.skinny import SkinnyTiles, skinny_product

SKINNY_ROWS: Final = 16
"""Up to so many rows go to our kernels in bf16, by default: one to `gemv`, more to `skinny_product`. With 16 rows the
products of a layer of 8B parameters take 161 us so, 170 by cuBLAS (H100, docs/benchmarks/cuda.md)."""


class CudaLinear:
    """A weight as the checkpoint has it, `[out_features, in_features]`, contiguous, on the device.

    Everything here can be captured in a CUDA graph. x's rows are contiguous; they may be apart.
    """

    is_kernel = True

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        tiles: GemvTiles | None = None,
        skinny_tiles: SkinnyTiles | None = None,
        skinny_rows: int = SKINNY_ROWS,
    ) -> None:
        """Tiles are chosen by the weight's shape unless given; `skinny_rows`: 0 to 64, 0 leaves all to cuBLAS."""
        self.weight = weight.contiguous()
        self.bias = bias
        self._transposed = self.weight.t()
        self._tiles = tiles
        self._skinny_tiles = skinny_tiles
        # fp32 has no tensor cores that keep all its bits
        self._skinny_rows = skinny_rows if weight.dtype == torch.bfloat16 else min(skinny_rows, 1)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """x `[n, in_features]` -> `[n, out_features]`, bias included; in `out`, contiguous, if given."""
        if 0 < x.shape[0] <= self._skinny_rows:
            return self._by_own_kernel(x, None, out)
        if out is None:
            return functional.linear(x, self.weight, self.bias)
        if self.bias is None:
            return torch.mm(x, self._transposed, out=out)
        return torch.addmm(self.bias, x, self._transposed, out=out)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Adds the product to `residual` `[n, out_features]`, contiguous, in place, in one call; returns it."""
        if 0 < x.shape[0] <= self._skinny_rows:
            return self._by_own_kernel(x, residual, residual)
        if self.bias is not None:
            residual.add_(self.bias)
        return residual.addmm_(x, self._transposed)

    def streams(self, x: Tensor) -> bool:
        """Whether `x` is one row and takes our own kernel: then `normed` and `normed_and_gated` have the same bits."""
        return x.shape[0] == 1 and self._skinny_rows > 0

    def normed(self, x: Tensor, norm: Norm, out: Tensor | None = None) -> Tensor:
        """The product with x's RMSNorm, of one row, in one kernel: the bits of `rms_norm`, then the product."""
        return gemv(x, self.weight, self.bias, None, out, norm=norm, tiles=self._tiles)

    def normed_and_gated(self, x: Tensor, norm: Norm, out: Tensor | None = None) -> Tensor:
        """silu(gate) * up of one row's product with gates, then ups, `[1, out_features / 2]`, in one kernel: the bits
        of `rms_norm`, the product, then `silu_and_mul`."""
        return gemv(x, self.weight, self.bias, None, out, norm=norm, is_gated=True, tiles=self._tiles)

    def _by_own_kernel(self, x: Tensor, residual: Tensor | None, out: Tensor | None) -> Tensor:
        if x.shape[0] == 1:
            return gemv(x, self.weight, self.bias, residual, out, tiles=self._tiles)
        return skinny_product(x, self.weight, self.bias, residual, out, tiles=self._skinny_tiles)
