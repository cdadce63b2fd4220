"""The one decoder of Llama, Mistral, Qwen2 and Qwen3; what differs between them is in `ModelConfig`.

Under tensor parallelism a rank computes with its share of heads, inner width and vocabulary (`checkpoint.shard`);
hidden states are whole on every rank. Two sums over the ranks a layer, and one for the embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from albireo.checkpoint.shard import ModelShard
from albireo.checkpoint.structs import ModelConfig
from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.interface import Attention
from albireo.gpu_worker.backend import Backend, Linear
from albireo.gpu_worker.collectives.interface import Collectives
from albireo.gpu_worker.kv_cache import KVCache
from albireo.gpu_worker.models.shard_loader import ShardLoader, VocabEmbedding
from albireo.gpu_worker.rope import rope_table
from albireo.gpu_worker.weights import Weights


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """This rank's share of one layer, fused: queries, keys and values in one product, gate and up in another."""

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
        self,
        config: ModelConfig,
        shard: ModelShard,
        weights: Weights,
        dtype: torch.dtype,
        attention: Attention,
        collectives: Collectives,
        max_model_len: int,
        backend: Backend,
    ) -> None:
        """`config` is the whole model's, `shard` says what of it this rank holds; `weights` must give tensors of
        `dtype` (bfloat16 or float32) on the backend's device; positions run up to `max_model_len` - 1."""
        self.config = local = shard.local(config)
        self.dtype = dtype
        self.on_layer: Callable[[], None] = lambda: None
        """Called before each layer: the rank's sign of life."""
        self.attention = attention
        self._collectives = collectives
        self._scale = config.head_dim**-0.5
        self.ops = backend.layer_ops(local, rope_table(config.rope, config.head_dim, max_model_len), dtype, attention)
        loader = ShardLoader(weights, config, shard, backend)
        self._embedding = VocabEmbedding(loader.embedding(), shard.vocab, collectives)
        self._layers = []
        for index in range(config.num_layers):
            self._layers.append(_build_layer(config, loader, index))
            weights.drop_pages()
        self._norm = weights.get("model.norm.weight").clone()
        # A tied head is packed too on a CPU: its packed form is the only copy in this process's memory, since of the
        # table itself, mapped from the file, only the rows of tokens in use are ever read. Elsewhere it is the table.
        self._lm_head = backend.linear(loader.head(self._embedding.table))
        self._vocab_width = shard.vocab.width

    @torch.inference_mode()
    def forward(self, input_ids: Tensor, positions: Tensor, batch: AttentionBatch, kv: KVCache) -> Tensor:
        """Hidden states after the final norm, `[n_tokens, hidden_size]` in the engine's dtype, the same on all ranks.

        `input_ids` int32 or int64 `[n_tokens]`, `positions` int64 `[n_tokens]`; writes `kv` where `batch` says.
        """
        return self.run_layers(self.embed(input_ids), positions, batch, kv, self.attention)

    def embed(self, input_ids: Tensor) -> Tensor:
        """int32 or int64 `[n_tokens]` -> `[n_tokens, hidden_size]`, a new tensor."""
        return self._embedding(input_ids)

    @property
    def vocab_width(self) -> int:
        """Columns of this rank's logits."""
        return self._vocab_width

    @property
    def embedding_table(self) -> Tensor:
        """`[vocab.size, hidden_size]`: this rank's rows."""
        return self._embedding.table

    @property
    def num_ranks(self) -> int:
        return self._collectives.size

    @property
    def linears(self) -> list[Linear]:
        """All of them, the head last."""
        parts = [linear for layer in self._layers for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        return [*parts, self._lm_head]

    def run_layers(
        self, hidden: Tensor, positions: Tensor, batch: AttentionBatch, kv: KVCache, attention: Attention
    ) -> Tensor:
        """From embeddings, which may be overwritten, to hidden states, both `[n_tokens, hidden_size]`; as `forward`."""
        config, ops = self.config, self.ops
        looked_up = ops.look_up(positions)
        shape = (hidden.shape[0], config.num_heads, config.head_dim)
        attended = torch.empty(shape, dtype=self.dtype, device=hidden.device)
        attended_flat = attended.view(hidden.shape[0], -1)
        for layer, (k_cache, v_cache) in zip(self._layers, kv.layers, strict=True):
            self.on_layer()
            qkv = ops.normed_product(hidden, layer.input_norm, layer.qkv)
            q = ops.rotate_and_store(qkv, layer.qk_norm, looked_up, k_cache, v_cache, batch)
            attention.attend(q, k_cache, v_cache, batch, self._scale, layer.sliding_window, attended)
            hidden = self._add(hidden, layer.o, attended_flat)
            gated = ops.normed_gate(hidden, layer.post_attention_norm, layer.gate_up)
            hidden = self._add(hidden, layer.down, gated)
        return ops.rms_norm(hidden, self._norm)

    def _add(self, hidden: Tensor, linear: Linear, x: Tensor) -> Tensor:
        """hidden + the product, whose terms are spread over the ranks."""
        if self._collectives.size == 1:
            return linear.add_to(hidden, x)
        return self._collectives.all_reduce(linear(x), hidden)

    @torch.inference_mode()
    def compute_logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """`[n_rows, hidden_size]` -> this rank's share `[n_rows, vocab.width]` of the logits, in the engine's dtype:
        new, or in `out`. Columns of padding are 0."""
        return self._lm_head(hidden, out)


def _build_layer(config: ModelConfig, loader: ShardLoader, index: int) -> DecoderLayer:
    prefix = f"model.layers.{index}"
    attention, mlp, get = f"{prefix}.self_attn", f"{prefix}.mlp", loader.weights.get
    return DecoderLayer(
        input_norm=get(f"{prefix}.input_layernorm.weight").clone(),
        qkv=loader.qkv(attention, config.qkv_bias),
        qk_norm=loader.qk_norm(attention) if config.qk_norm else None,
        o=loader.row_parallel(f"{attention}.o_proj", loader.head_columns, config.o_bias),
        post_attention_norm=get(f"{prefix}.post_attention_layernorm.weight").clone(),
        gate_up=loader.gate_up(mlp, config.mlp_bias),
        down=loader.row_parallel(f"{mlp}.down_proj", loader.shard.inner, config.mlp_bias),
        sliding_window=config.sliding_windows[index],
    )
