"""The one decoder of Llama, Mistral, Qwen2 and Qwen3; what differs between them is in `ModelConfig`."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from albireo.checkpoint.structs import ModelConfig
from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.interface import Attention
from albireo.gpu_worker.kv_cache import KVCache
from albireo.gpu_worker.layer_ops import make_layer_ops
from albireo.gpu_worker.layers import Linear, make_linear
from albireo.gpu_worker.rope import rope_table
from albireo.gpu_worker.weights import Weights


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One layer's weights, fused: queries, keys and values in one product, gate and up in another."""

    input_norm: Tensor
    qkv: Linear
    """hidden -> `[(num_heads + 2 * num_kv_heads) * head_dim]`: queries, keys, values"""
    qk_norm: Tensor | None
    """`[num_heads + num_kv_heads, head_dim]`: the query norm for each query head, then the key norm"""
    o: Linear
    post_attention_norm: Tensor
    gate_up: Linear
    down: Linear
    sliding_window: int | None


class DecoderModel:
    """Runs a step's tokens through the layers, keys and values going to a paged cache.

    Holds no request state: rows are tokens in the order of the `AttentionBatch`. Used by the worker's model thread.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, dtype: torch.dtype, attention: Attention, max_model_len: int
    ) -> None:
        """`weights` must give tensors of `dtype` (bfloat16 or float32); positions run up to `max_model_len` - 1."""
        self.config = config
        self.dtype = dtype
        self._attention = attention
        self._scale = config.head_dim**-0.5
        self._ops = make_layer_ops(config, rope_table(config.rope, config.head_dim, max_model_len), dtype)
        self._embedding = weights.get("model.embed_tokens.weight")
        self._layers = [_build_layer(config, weights, index) for index in range(config.num_layers)]
        self._norm = weights.get("model.norm.weight").clone()
        # A tied head is packed too: its packed form is the only copy in this process's memory, since of the table
        # itself, mapped from the file, only the rows of tokens in use are ever read.
        head = self._embedding if config.tie_word_embeddings else weights.get("lm_head.weight")
        self._lm_head = make_linear(head)

    @torch.inference_mode()
    def forward(self, input_ids: Tensor, positions: Tensor, batch: AttentionBatch, kv: KVCache) -> Tensor:
        """Hidden states after the final norm, `[n_tokens, hidden_size]` in the engine's dtype.

        `input_ids` int32 or int64 `[n_tokens]`, `positions` int64 `[n_tokens]`; writes `kv` where `batch` says.
        """
        config, ops = self.config, self._ops
        n_tokens, num_heads = input_ids.shape[0], config.num_heads
        num_rotated = num_heads + config.num_kv_heads
        looked_up = ops.look_up(positions)
        attended = torch.empty(n_tokens, num_heads, config.head_dim, dtype=self.dtype)
        attended_flat = attended.view(n_tokens, -1)
        hidden = functional.embedding(input_ids, self._embedding)
        for layer, (k_cache, v_cache) in zip(self._layers, kv.layers, strict=True):
            qkv = layer.qkv(ops.rms_norm(hidden, layer.input_norm))
            q_and_k = ops.rotate(qkv, layer.qk_norm, looked_up)
            v = qkv.view(n_tokens, -1, config.head_dim)[:, num_rotated:]
            self._attention.write_kv(q_and_k[:, num_heads:], v, k_cache, v_cache, batch)
            q = q_and_k[:, :num_heads]
            self._attention.attend(q, k_cache, v_cache, batch, self._scale, layer.sliding_window, attended)
            hidden = layer.o.add_to(hidden, attended_flat)
            gate_up = layer.gate_up(ops.rms_norm(hidden, layer.post_attention_norm))
            hidden = layer.down.add_to(hidden, ops.silu_and_mul(gate_up))
        return ops.rms_norm(hidden, self._norm)

    @torch.inference_mode()
    def compute_logits(self, hidden: Tensor) -> Tensor:
        """`[n_rows, hidden_size]` -> `[n_rows, vocab_size]` in the engine's dtype."""
        return self._lm_head(hidden)


def _build_layer(config: ModelConfig, weights: Weights, index: int) -> DecoderLayer:
    prefix = f"model.layers.{index}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    qk_norm = None
    if config.qk_norm:
        q_norm, k_norm = weights.get(f"{attention}.q_norm.weight"), weights.get(f"{attention}.k_norm.weight")
        qk_norm = torch.cat((q_norm.expand(config.num_heads, -1), k_norm.expand(config.num_kv_heads, -1)))
    qkv_names = [f"{attention}.{name}_proj" for name in "qkv"]
    return DecoderLayer(
        input_norm=weights.get(f"{prefix}.input_layernorm.weight").clone(),
        qkv=_fused_linear(weights, qkv_names, config.qkv_bias),
        qk_norm=qk_norm,
        o=_fused_linear(weights, [f"{attention}.o_proj"], config.o_bias),
        post_attention_norm=weights.get(f"{prefix}.post_attention_layernorm.weight").clone(),
        gate_up=_fused_linear(weights, [f"{mlp}.gate_proj", f"{mlp}.up_proj"], config.mlp_bias),
        down=_fused_linear(weights, [f"{mlp}.down_proj"], config.mlp_bias),
        sliding_window=config.sliding_windows[index],
    )


def _fused_linear(weights: Weights, names: list[str], bias: bool) -> Linear:
    """One product for the projections `names`, outputs in that order. One alone is not copied."""

    def fetch(kind: str) -> Tensor:
        parts = [weights.get(f"{name}.{kind}") for name in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return make_linear(fetch("weight"), fetch("bias") if bias else None)
