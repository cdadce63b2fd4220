"""What a decoder layer does between its products: RMSNorm, rotary embedding and the way into the KV cache, gated
activation."""

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from albireo.checkpoint.structs import ModelConfig
from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.interface import Attention
from albireo.gpu_worker.backend import ComposedLayerOps, LayerOps
from albireo.gpu_worker.kernels.elementwise import rms_norm_kernel, silu_and_mul_kernel
from albireo.gpu_worker.kernels.launch import Kernel, is_capturing
from albireo.gpu_worker.kernels.rotate_and_store import rotate_and_store_kernel


class TorchLayerOps(ComposedLayerOps):
    """By torch calls: any device, any size. Rounds where transformers rounds."""

    def __init__(self, config: ModelConfig, table: Tensor, dtype: torch.dtype, attention: Attention) -> None:
        """`table`: fp32 `[positions, 2, head_dim / 2]`, cosines and sines; `attention` knows how to write its pages."""
        self._attention = attention
        self._eps = config.rms_norm_eps
        self._num_heads = config.num_heads
        self._num_rotated = config.num_heads + config.num_kv_heads
        self._head_dim = config.head_dim
        cos, sin = table.unbind(1)
        # The sign folds the usual "rotate half" into a roll.
        full = torch.stack((torch.cat((cos, cos), dim=1), torch.cat((-sin, sin), dim=1)), dim=1)
        self._table = full.to(dtype)

    def look_up(self, positions: Tensor) -> Tensor:
        return self._table[positions]

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        scale = wide.square().mean(-1, keepdim=True).add_(self._eps).rsqrt_()
        return (wide * scale).to(x.dtype).mul_(weight)

    def rotate_and_store(
        self,
        qkv: Tensor,
        qk_norm: Tensor | None,
        looked_up: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        batch: AttentionBatch,
    ) -> Tensor:
        split = qkv.view(qkv.shape[0], -1, self._head_dim)
        heads = split[:, : self._num_rotated]
        if qk_norm is not None:
            heads = self.rms_norm(heads, qk_norm)
        rolled = heads.roll(self._head_dim // 2, -1)
        rotated = (heads * looked_up[:, :1]).addcmul_(rolled, looked_up[:, 1:])
        self._attention.write_kv(rotated[:, self._num_heads :], split[:, self._num_rotated :], k_cache, v_cache, batch)
        return rotated[:, : self._num_heads]

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return functional.silu(gate).mul_(up)


class KernelLayerOps(ComposedLayerOps):
    """By the kernels of `kernels.elementwise`, on the CPU. Rounds once per operation, so closer to fp32 in bf16."""

    def __init__(self, config: ModelConfig, table: Tensor, dtype: torch.dtype) -> None:
        element = np.uint16 if dtype == torch.bfloat16 else np.float32
        self._dtype = dtype
        self._head_dim = config.head_dim
        self._num_heads = config.num_heads
        self._num_kv_heads = config.num_kv_heads
        self._eps = config.rms_norm_eps
        self._table = table.contiguous()
        self._table_address = self._table.data_ptr()
        self._threads = torch.get_num_threads()
        self._rms_norm = rms_norm_kernel(element)
        self._rotate_and_store = rotate_and_store_kernel(element, config.head_dim, config.qk_norm)
        self._silu_and_mul = silu_and_mul_kernel(element)
        self._counter = np.zeros(1, np.int64)
        self._counter_address: int = self._counter.ctypes.data

    @staticmethod
    def fits(config: ModelConfig) -> bool:
        """Whether the sizes are whole vectors."""
        return not (config.hidden_size % 16 or config.intermediate_size % 16 or config.head_dim % 32)

    def look_up(self, positions: Tensor) -> Tensor:
        return positions.contiguous()

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty_like(x)
        rows, width = x.shape
        self._run(self._rms_norm, rows, width, width, x, out, weight.data_ptr())
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
        rows = qkv.shape[0]
        query = torch.empty(rows, self._num_heads, self._head_dim, dtype=self._dtype)
        threads, chunk = self._share_out(rows, qkv.shape[1])
        arguments = (
            self._counter_address,
            chunk,
            rows,
            self._num_heads,
            self._num_kv_heads,
            qkv.data_ptr(),
            query.data_ptr(),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            k_cache.shape[2],
            batch.slot_mapping.data_ptr(),
            0 if qk_norm is None else qk_norm.data_ptr(),
            self._table_address,
            looked_up.data_ptr(),
            self._eps,
            0.0,
        )
        self._rotate_and_store(arguments, threads)
        return query

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        rows, stride = gate_up.shape
        out = torch.empty(rows, stride // 2, dtype=self._dtype)
        self._run(self._silu_and_mul, rows, stride // 2, stride, gate_up, out, 0)
        return out

    def _run(self, kernel: Kernel, rows: int, width: int, stride: int, x: Tensor, out: Tensor, weight: int) -> None:
        threads, chunk = self._share_out(rows, stride)
        arguments = (
            self._counter_address,
            chunk,
            rows,
            width,
            x.data_ptr(),
            stride,
            out.data_ptr(),
            weight,
            self._eps,
            0.0,
        )
        kernel(arguments, threads)

    def _share_out(self, rows: int, stride: int) -> tuple[int, int]:
        """Threads for rows of `stride` elements, and rows that a thread takes at a time; the counter is at 0."""
        least = _PROGRAM_SHARED_ELEMENTS if is_capturing() else _SHARED_ELEMENTS
        threads = self._threads if rows * stride >= least else 1
        self._counter[0] = 0
        return threads, max(1, rows // (4 * threads)) if threads > 1 else rows


_SHARED_ELEMENTS: Final = 1 << 16
"""Fewer elements than this take less time on one thread than it takes to call the others."""
_PROGRAM_SHARED_ELEMENTS: Final = 1 << 12
"""The same within a program, where the others are there already."""


def make_layer_ops(config: ModelConfig, table: Tensor, dtype: torch.dtype, attention: Attention) -> LayerOps:
    """The kernels where they fit, torch calls otherwise."""
    if KernelLayerOps.fits(config):
        return KernelLayerOps(config, table, dtype)
    return TorchLayerOps(config, table, dtype, attention)
