"""One row times a weight matrix by our own kernel, alone or with what stands before and after it in a layer.

In a captured decode step of one row each kernel is as long as its weights take to read, and about a microsecond of gap.
The fused forms save gaps, not arithmetic; they give the bits of the kernels one by one (`kernels.gemv`).
"""

from dataclasses import dataclass, replace
from typing import Final

import torch
import triton
from torch import Tensor

from albireo.gpu_worker.cuda.kernels.gemv import gemv_kernel

VECTOR_BYTES: Final = 16
"""What a thread reads at once."""
WARP: Final = 32
PROGRAMS: Final = 512
"""At least so many programs, if there are enough outputs: about 4 on each of an H100's 132 multiprocessors, so that
whichever hold one more than others cost little."""
MOST_OUTPUTS: Final = 2
"""Of a program. Measured on an H100 (docs/benchmarks/cuda.md): 2 outputs by 8 warps beat 8 by 4 by 3 to 5% on inputs of
4,096 and are level with the best on 14,336."""


@dataclass(frozen=True, slots=True)
class GemvTiles:
    """How a product is cut up; sums of equal `block_k` and `num_warps` have equal bits."""

    block_n: int
    """Outputs a program, a power of two."""
    block_k: int
    """Inputs a step, a power of two, at least what `num_warps` warps read at once."""
    num_warps: int
    stages: int = 1
    """See `gemv_kernel`."""
    is_dependent: bool = False
    """Launch as a programmatic dependent, on a GPU: see `gemv_kernel`."""


def choose_tiles(out_features: int, in_features: int, element_size: int, is_gated: bool = False) -> GemvTiles:
    """Tiles for a weight `[out_features, in_features]`; gated: of which a program reads two rows an output."""
    vector = VECTOR_BYTES // element_size
    num_warps = 8
    while num_warps > 1 and num_warps * WARP * vector > in_features:
        num_warps //= 2
    outputs = out_features // 2 if is_gated else out_features
    block_n = MOST_OUTPUTS
    while block_n > 1 and outputs < PROGRAMS * block_n:
        block_n //= 2
    return GemvTiles(block_n, num_warps * WARP * vector, num_warps)


@dataclass(frozen=True, slots=True)
class Norm:
    """The RMSNorm in front of a product: `weight` `[in_features]`."""

    weight: Tensor
    eps: float


def gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    *,
    norm: Norm | None = None,
    is_gated: bool = False,
    tiles: GemvTiles | None = None,
) -> Tensor:
    """x `[1, in_features]` -> `[1, out_features]`: weight @ x + bias + residual, in fp32, rounded once; in `out` if
    given, which may be `residual`.

    With `norm` x is replaced by its RMSNorm, rounded to x's dtype. With `is_gated` the weight's rows are gates, then
    ups, and the result is silu(gate) * up, `[1, out_features / 2]`, of gates and ups rounded first.
    """
    rows, in_features = weight.shape
    outputs = rows // 2 if is_gated else rows
    assert x.shape == (1, in_features) and x.stride(1) == 1 and weight.is_contiguous()
    assert out is None or out.shape == (1, outputs)
    tiles = tiles or choose_tiles(rows, in_features, weight.element_size(), is_gated)
    vector = VECTOR_BYTES // weight.element_size()
    assert tiles.block_k % (tiles.num_warps * WARP * vector) == 0, "threads lie along the input"
    is_dependent = tiles.is_dependent and x.is_cuda
    if out is None:
        out = torch.empty(1, outputs, dtype=x.dtype, device=x.device)
    gemv_kernel[(triton.cdiv(outputs, tiles.block_n),)](
        x,
        weight,
        weight if bias is None else bias,
        weight if residual is None else residual,
        out,
        weight if norm is None else norm.weight,
        0.0 if norm is None else norm.eps,
        N=outputs,
        K=in_features,
        BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k,
        STAGES=tiles.stages,
        VECTOR=vector,
        NORM_BLOCK=max(8, triton.next_power_of_2(in_features)),
        NORMED=norm is not None,
        GATED=is_gated,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        IS_DEPENDENT=is_dependent,
        num_warps=tiles.num_warps,
        launch_pdl=is_dependent,
    )
    return out


def dependent(tiles: GemvTiles) -> GemvTiles:
    """The same tiles, launched as a programmatic dependent."""
    return replace(tiles, is_dependent=True)
