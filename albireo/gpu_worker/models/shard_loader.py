"""A rank's share of a decoder's weights, fetched by slices: nothing that belongs to other ranks is copied."""

import torch
from torch import Tensor
from torch.nn import functional

from albireo.checkpoint.shard import ModelShard, Span
from albireo.checkpoint.structs import ModelConfig
from albireo.gpu_worker.backend import Backend, Linear
from albireo.gpu_worker.collectives.interface import Collectives
from albireo.gpu_worker.weights import Weights

EMBEDDING = "model.embed_tokens.weight"


class ShardLoader:
    """Builds the linear layers of one rank. Column-parallel: this rank's outputs of the whole input. Row-parallel:
    the whole output's terms from this rank's inputs, to be summed over ranks, the bias being rank 0's."""

    def __init__(self, weights: Weights, config: ModelConfig, shard: ModelShard, backend: Backend) -> None:
        self.weights = weights
        self.shard = shard
        self._linear = backend.linear
        self._config = config
        self.head_columns = _scaled(shard.heads, config.head_dim)
        """Of the attention's output, and rows of the queries."""
        self._kv_rows = _scaled(shard.kv_heads, config.head_dim)

    def qkv(self, attention: str, bias: bool) -> Linear:
        """hidden -> the rank's queries, keys, values."""
        rows = {"q": self.head_columns, "k": self._kv_rows, "v": self._kv_rows}
        return self._column_parallel({f"{attention}.{name}_proj": span for name, span in rows.items()}, bias)

    def gate_up(self, mlp: str, bias: bool) -> Linear:
        """hidden -> the rank's gates, then its ups, each padded to the span's width: silu(0) * 0 adds nothing."""
        return self._column_parallel({f"{mlp}.{name}_proj": self.shard.inner for name in ("gate", "up")}, bias)

    def row_parallel(self, name: str, columns: Span, bias: bool) -> Linear:
        weight = _pad(self.weights.get(f"{name}.weight", columns=columns.slice), columns, dim=1)
        return self._linear(weight, self.weights.get(f"{name}.bias") if bias and self.shard.rank == 0 else None)

    def qk_norm(self, attention: str) -> Tensor:
        """`[heads + kv_heads, head_dim]`: the query norm for each query head, then the key norm."""
        q_norm, k_norm = (self.weights.get(f"{attention}.{name}_norm.weight") for name in "qk")
        return torch.cat((q_norm.expand(self.shard.heads.width, -1), k_norm.expand(self.shard.kv_heads.width, -1)))

    def embedding(self) -> Tensor:
        """`[vocab.size, hidden_size]`, a view of the file where it can be."""
        return self.weights.get(EMBEDDING, rows=self.shard.vocab.slice)

    def head(self, table: Tensor) -> Tensor:
        """`[vocab.width, hidden_size]`; `table` is the embedding's, which a tied head shares."""
        if not self._config.tie_word_embeddings:
            table = self.weights.get("lm_head.weight", rows=self.shard.vocab.slice)
        return _pad(table, self.shard.vocab, dim=0)

    def _column_parallel(self, rows: dict[str, Span], bias: bool) -> Linear:
        """One product for several projections, outputs in their order. One alone is not copied."""

        def fetch(kind: str) -> Tensor:
            parts = [
                _pad(self.weights.get(f"{name}.{kind}", rows=span.slice), span, dim=0) for name, span in rows.items()
            ]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        return self._linear(fetch("weight"), fetch("bias") if bias else None)


class VocabEmbedding:
    """Rows of the embedding table, each of which one rank holds."""

    def __init__(self, table: Tensor, vocab: Span, collectives: Collectives) -> None:
        """`table` `[vocab.size, hidden_size]`"""
        self.table = table
        self._vocab = vocab
        self._collectives = collectives

    def __call__(self, input_ids: Tensor) -> Tensor:
        """int32 or int64 `[n]` -> `[n, hidden_size]`; a sum over ranks of which one term is not zero, so exact."""
        if self._collectives.size == 1:
            return functional.embedding(input_ids, self.table)
        if not self._vocab.size:
            found = self.table.new_zeros(input_ids.shape[0], self.table.shape[1])
            return self._collectives.all_reduce(found)
        local = input_ids - self._vocab.start
        is_elsewhere = (local < 0) | (local >= self._vocab.size)
        found = functional.embedding(local.masked_fill_(is_elsewhere, 0), self.table)
        return self._collectives.all_reduce(found.masked_fill_(is_elsewhere.unsqueeze(1), 0))


def _scaled(span: Span, factor: int) -> Span:
    return Span(span.start * factor, span.end * factor, span.width * factor)


def _pad(part: Tensor, span: Span, dim: int) -> Tensor:
    """Zeros behind what this rank has of a dimension, up to the span's width."""
    missing = span.width - span.size
    if not missing:
        return part
    shape = list(part.shape)
    shape[dim] = missing
    return torch.cat((part, part.new_zeros(shape)), dim)
