"""What a decoder layer does between its products: RMSNorm, rotary embedding, gated activation."""

from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from albireo.checkpoint.structs import ModelConfig
from albireo.gpu_worker.kernels.elementwise import (
    rms_norm_kernel,
    rotate_kernel,
    silu_and_mul_kernel,
)
from albireo.gpu_worker.kernels.launch import Kernel


class LayerOps(Protocol):
    """One model's element-wise operations, all in fp32 inside. Tensors have the engine's dtype."""

    def look_up(self, positions: Tensor) -> Tensor:
        """What `rotate` wants for a step's int64 `positions` `[n]`; made once a step, used by every layer."""

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """x / rms(x) * weight over the last dimension; x `[n, hidden_size]`, contiguous."""

    def rotate(self, qkv: Tensor, qk_norm: Tensor | None, looked_up: Tensor) -> Tensor:
        """Queries and keys of `qkv` `[n, (num_heads + 2 * num_kv_heads) * head_dim]`, normalised per head by
        `qk_norm` `[num_heads + num_kv_heads, head_dim]` if given, and rotated by their positions:
        `[n, num_heads + num_kv_heads, head_dim]`."""

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """`[n, 2 * m]` -> silu of the first half times the second, `[n, m]`."""


class TorchLayerOps:
    """By torch calls: any device, any size. Rounds where transformers rounds."""

    def __init__(self, config: ModelConfig, table: Tensor, dtype: torch.dtype) -> None:
        """`table`: fp32 `[positions, 2, head_dim / 2]`, cosines and sines."""
        self._eps = config.rms_norm_eps
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

    def rotate(self, qkv: Tensor, qk_norm: Tensor | None, looked_up: Tensor) -> Tensor:
        heads = qkv.view(qkv.shape[0], -1, self._head_dim)[:, : self._num_rotated]
        if qk_norm is not None:
            heads = self.rms_norm(heads, qk_norm)
        rolled = heads.roll(self._head_dim // 2, -1)
        return (heads * looked_up[:, :1]).addcmul_(rolled, looked_up[:, 1:])

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return functional.silu(gate).mul_(up)


class KernelLayerOps:
    """By the kernels of `kernels.elementwise`, on the CPU. Rounds once per operation, so closer to fp32 in bf16."""

    def __init__(self, config: ModelConfig, table: Tensor, dtype: torch.dtype) -> None:
        element = np.uint16 if dtype == torch.bfloat16 else np.float32
        self._dtype = dtype
        self._head_dim = config.head_dim
        self._num_rotated = config.num_heads + config.num_kv_heads
        self._eps = config.rms_norm_eps
        self._table = table.contiguous()
        self._table_address = self._table.data_ptr()
        self._threads = torch.get_num_threads()
        self._rms_norm = rms_norm_kernel(element)
        self._rotate = rotate_kernel(element, config.head_dim, config.qk_norm)
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
        self._run(self._rms_norm, rows, width, width, x, out, weight.data_ptr(), 0)
        return out

    def rotate(self, qkv: Tensor, qk_norm: Tensor | None, looked_up: Tensor) -> Tensor:
        rows, stride = qkv.shape
        out = torch.empty(rows, self._num_rotated, self._head_dim, dtype=self._dtype)
        weight = 0 if qk_norm is None else qk_norm.data_ptr()
        self._run(self._rotate, rows, self._num_rotated, stride, qkv, out, weight, looked_up.data_ptr())
        return out

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        rows, stride = gate_up.shape
        out = torch.empty(rows, stride // 2, dtype=self._dtype)
        self._run(self._silu_and_mul, rows, stride // 2, stride, gate_up, out, 0, 0)
        return out

    def _run(
        self, kernel: Kernel, rows: int, width: int, stride: int, x: Tensor, out: Tensor, weight: int, positions: int
    ) -> None:
        threads = self._threads if rows * stride >= _SHARED_ELEMENTS else 1
        chunk = max(1, rows // (4 * threads)) if threads > 1 else rows
        self._counter[0] = 0
        arguments = (
            self._counter_address,
            chunk,
            rows,
            width,
            x.data_ptr(),
            stride,
            out.data_ptr(),
            weight,
            self._table_address,
            positions,
            self._eps,
            0.0,
        )
        kernel(arguments, threads)


_SHARED_ELEMENTS: Final = 1 << 16
"""Fewer elements than this take less time on one thread than it takes to call the others."""


def make_layer_ops(config: ModelConfig, table: Tensor, dtype: torch.dtype) -> LayerOps:
    """The kernels where they fit, torch calls otherwise."""
    return (KernelLayerOps if KernelLayerOps.fits(config) else TorchLayerOps)(config, table, dtype)
