"""`LayerOps` on the GPU: one kernel per operation, all of which can be captured in a CUDA graph."""

from typing import Final

import torch
import triton
from torch import Tensor

from albireo.checkpoint.structs import ModelConfig
from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.backend import ComposedLayerOps, Linear
from albireo.gpu_worker.cuda.gemv import Norm
from albireo.gpu_worker.cuda.kernels.elementwise import rms_norm_kernel, silu_and_mul_kernel
from albireo.gpu_worker.cuda.kernels.rotate_and_store import rotate_and_store_kernel
from albireo.gpu_worker.cuda.linear import CudaLinear

SILU_TILE: Final = 1024
TILE_PAIRS: Final = 1024
"""Pairs that a program of `rotate_and_store` turns: 8 a thread, 16 heads of 128."""


class TritonLayerOps(ComposedLayerOps):
    """By Triton kernels. Rounds once per operation, so closer to fp32 in bf16 than torch calls."""

    def __init__(self, config: ModelConfig, table: Tensor, dtype: torch.dtype) -> None:
        """`table`: fp32 `[positions, 2, head_dim / 2]`, cosines and sines, on the device; `config` is this rank's."""
        self._dtype = dtype
        self._table = table.contiguous()
        self._eps = config.rms_norm_eps
        self._num_heads = config.num_heads
        self._num_kv_heads = config.num_kv_heads
        self._head_dim = config.head_dim
        self._half = triton.next_power_of_2(config.head_dim // 2)
        heads = config.num_heads + 2 * config.num_kv_heads
        self._tile_heads = min(triton.next_power_of_2(heads), max(1, TILE_PAIRS // self._half))
        self._head_tiles = triton.cdiv(heads, self._tile_heads)

    def look_up(self, positions: Tensor) -> Tensor:
        """The positions themselves, int32 or int64: the kernel looks into the table."""
        return positions.contiguous()

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """x `[n, hidden_size]`, rows contiguous, hidden_size up to 16384; a row's bits depend on the row alone."""
        rows, width = x.shape
        out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
        if rows:
            block = max(8, triton.next_power_of_2(width))
            rms_norm_kernel[(rows,)](
                x, weight, out, x.stride(0), self._eps, WIDTH=width, BLOCK=block, num_warps=norm_warps(block)
            )
        return out

    def rotate_and_store(
        self,
        qkv: Tensor,
        qk_norm: Tensor | None,
        looked_up: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        batch: AttentionBatch,
    ) -> Tensor:
        """As the protocol says. Caches are contiguous; rows of slot -1 are rotated and stored nowhere."""
        rows = qkv.shape[0]
        query = torch.empty(rows, self._num_heads, self._head_dim, dtype=self._dtype, device=qkv.device)
        if rows:
            rotate_and_store_kernel[(rows, self._head_tiles)](
                qkv,
                query,
                k_cache,
                v_cache,
                qkv if qk_norm is None else qk_norm,
                self._table,
                looked_up,
                batch.slot_mapping,
                qkv.stride(0),
                self._eps,
                NUM_HEADS=self._num_heads,
                NUM_KV_HEADS=self._num_kv_heads,
                HEAD_DIM=self._head_dim,
                BLOCK_SIZE=k_cache.shape[2],
                HAS_NORM=qk_norm is not None,
                TILE_HEADS=self._tile_heads,
                HALF=self._half,
                num_warps=4,
            )
        return query

    def normed_product(self, x: Tensor, norm: Tensor, linear: Linear) -> Tensor:
        """One row: one kernel."""
        if isinstance(linear, CudaLinear) and linear.streams(x):
            return linear.normed(x, Norm(norm, self._eps))
        return super().normed_product(x, norm, linear)

    def normed_gate(self, x: Tensor, norm: Tensor, gate_up: Linear) -> Tensor:
        """One row: one kernel."""
        if isinstance(gate_up, CudaLinear) and gate_up.streams(x):
            return gate_up.normed_and_gated(x, Norm(norm, self._eps))
        return super().normed_gate(x, norm, gate_up)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """Rows of `gate_up` are contiguous; they may be apart."""
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
        if rows:
            grid = (rows, triton.cdiv(width, SILU_TILE))
            silu_and_mul_kernel[grid](gate_up, out, gate_up.stride(0), WIDTH=width, BLOCK=SILU_TILE, num_warps=4)
        return out


def norm_warps(block: int) -> int:
    """Warps for a row of `block` elements, a power of two: 16 elements a thread, from 1 to 32 warps."""
    return min(32, max(1, block // 512))
