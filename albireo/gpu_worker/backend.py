"""What a model is built from, one implementation per kind of device: products, what lies between them, and where its
tensors are."""

from typing import Protocol

import torch
from torch import Tensor

from albireo.checkpoint.structs import ModelConfig
from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.interface import Attention


class Linear(Protocol):
    """x `[n, in_features]` -> `[n, out_features]`, bias included."""

    is_kernel: bool
    """Whether the products of a decode step are one kernel's call, which a captured step can hold."""

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """A new tensor, or `out` `[n, out_features]`, contiguous."""

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual `[n, out_features]` + the product, in one call: a new tensor, or `residual` itself, overwritten."""


class LayerOps(Protocol):
    """One model's element-wise operations, all in fp32 inside. Tensors have the engine's dtype."""

    def look_up(self, positions: Tensor) -> Tensor:
        """What `rotate` wants for a step's int64 `positions` `[n]`; made once a step, used by every layer."""

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """x / rms(x) * weight over the last dimension; x `[n, hidden_size]`, contiguous."""

    def rotate_and_store(
        self,
        qkv: Tensor,
        qk_norm: Tensor | None,
        looked_up: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        batch: AttentionBatch,
    ) -> Tensor:
        """Queries and keys of `qkv` `[n, (num_heads + 2 * num_kv_heads) * head_dim]`, contiguous, normalised per head
        by `qk_norm` `[num_heads + num_kv_heads, head_dim]` if given, and rotated by their positions. Returns the
        queries, `[n, num_heads, head_dim]`; keys and values go where `Attention.write_kv` puts them."""

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """`[n, 2 * m]` -> silu of the first half times the second, `[n, m]`."""

    def normed_product(self, x: Tensor, norm: Tensor, linear: Linear) -> Tensor:
        """linear(rms_norm(x, norm)), in fewer kernels where there is one for it: the same bits."""

    def normed_gate(self, x: Tensor, norm: Tensor, gate_up: Linear) -> Tensor:
        """silu_and_mul(gate_up(rms_norm(x, norm))), likewise."""


class ComposedLayerOps:
    """The last two of `LayerOps`, made of the others."""

    def normed_product(self: LayerOps, x: Tensor, norm: Tensor, linear: Linear) -> Tensor:
        return linear(self.rms_norm(x, norm))

    def normed_gate(self: LayerOps, x: Tensor, norm: Tensor, gate_up: Linear) -> Tensor:
        return self.silu_and_mul(gate_up(self.rms_norm(x, norm)))


class Backend(Protocol):
    """One kind of device. A model asks it for its parts when it is built."""

    device: torch.device
    """Where weights are handed to `linear`, and where all of a model's tensors lie."""

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """The fastest form of a layer with `weight` `[out_features, in_features]`; may keep or drop the tensor."""

    def layer_ops(self, config: ModelConfig, table: Tensor, dtype: torch.dtype, attention: Attention) -> LayerOps:
        """`table`: fp32 `[positions, 2, head_dim / 2]`, cosines and sines, on the CPU; `attention` knows its pages."""
