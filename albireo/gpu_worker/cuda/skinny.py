"""A few rows times a weight matrix by our own tensor-core kernel."""

from dataclasses import dataclass
from typing import Final

import torch
import triton
from torch import Tensor

from albireo.gpu_worker.cuda.kernels.skinny import skinny_kernel

LEAST_ROWS: Final = 16
"""Rows of a tensor-core tile: fewer take as long."""


@dataclass(frozen=True, slots=True)
class SkinnyTiles:
    """How a product is cut up."""

    block_n: int
    block_k: int
    num_warps: int
    stages: int


def choose_skinny_tiles(out_features: int, in_features: int) -> SkinnyTiles:
    """The best of some on an H100 (docs/benchmarks/cuda.md): wide programs where there are enough of them, narrow ones
    for long rows and for a head's many outputs."""
    if out_features <= 2048 or out_features > 65536:
        return SkinnyTiles(16, 256, 2, 4)
    if in_features > 8192:
        return SkinnyTiles(16, 256, 4, 5)
    return SkinnyTiles(32, 128, 4, 6) if out_features <= 4096 else SkinnyTiles(64, 128, 4, 5)


def skinny_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    *,
    tiles: SkinnyTiles | None = None,
) -> Tensor:
    """x `[n, in_features]`, rows contiguous -> `[n, out_features]`: x @ weight.T + bias + residual, rounded once.

    `out` and `residual`, contiguous, may be the same. Made for n up to 16 and right up to 64, in bf16; fp32 needs
    smaller `tiles` than the chosen ones.
    """
    rows, (outputs, in_features) = x.shape[0], weight.shape
    assert 0 < rows <= 64 and x.stride(1) == 1 and weight.is_contiguous()
    tiles = tiles or choose_skinny_tiles(outputs, in_features)
    if out is None:
        out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    skinny_kernel[(triton.cdiv(outputs, tiles.block_n),)](
        x,
        weight,
        weight if bias is None else bias,
        weight if residual is None else residual,
        out,
        rows,
        x.stride(0),
        N=outputs,
        K=in_features,
        BLOCK_M=max(LEAST_ROWS, triton.next_power_of_2(rows)),
        BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k,
        STAGES=tiles.stages,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        IN_FP32=not x.is_cuda,
        num_warps=tiles.num_warps,
    )
    return out
