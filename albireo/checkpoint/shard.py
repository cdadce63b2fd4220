"""One rank's share of a model under tensor parallelism of degree t.

Heads, the MLP's inner dimension and the vocabulary are split; hidden states and norms are whole on every rank. The
scheme is Megatron-LM's (Shoeybi et al. 2019, arXiv 1909.08053, section 3): columns of the first product, rows of the
second, one sum over ranks after each pair.
"""

from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from albireo.checkpoint.structs import CheckpointError, ModelConfig

VOCAB_ALIGNMENT: Final = 128
"""Ranks' vocabulary shares begin at multiples of this: the sampler's block of tokens (`sampling.kernels.BLOCK`)."""
INNER_ALIGNMENT: Final = 16
"""Ranks' shares of the MLP's inner dimension are multiples of this: a whole vector of the element-wise kernels."""


class Span(Struct, frozen=True):
    """Part [start, end) of a dimension, padded with zeros to `width`."""

    start: int
    end: int
    width: int

    @property
    def size(self) -> int:
        """Without the padding."""
        return self.end - self.start

    @property
    def slice(self) -> slice:
        return slice(self.start, self.end)


class ModelShard(Struct, frozen=True):
    """What rank `rank` of `size` holds."""

    rank: int
    size: int
    heads: Span
    kv_heads: Span
    """Where there are fewer KV heads than ranks, neighbours hold the same one."""
    inner: Span
    vocab: Span
    """`width` is the same on every rank; the last ranks may hold less, or nothing but padding."""

    def local(self, model: ModelConfig) -> ModelConfig:
        """`model` as this rank's layers see it: with the rank's numbers of heads and inner width."""
        return replace(
            model,
            num_heads=self.heads.width,
            num_kv_heads=self.kv_heads.width,
            intermediate_size=self.inner.width,
        )


def shard_model(model: ModelConfig, rank: int, size: int) -> ModelShard:
    """Raises `CheckpointError` where attention heads cannot be divided evenly; the rest is padded."""
    heads, kv_heads = model.num_heads, model.num_kv_heads
    if heads % size:
        raise CheckpointError(f"tensor-parallel size {size} does not divide the model's {heads} attention heads")
    if kv_heads % size and size % kv_heads:
        raise CheckpointError(
            f"tensor-parallel size {size} neither divides the model's {kv_heads} KV heads nor is a multiple of them"
        )
    num_kv = max(1, kv_heads // size)
    first_kv = rank * kv_heads // size
    return ModelShard(
        rank=rank,
        size=size,
        heads=Span(rank * heads // size, (rank + 1) * heads // size, heads // size),
        kv_heads=Span(first_kv, first_kv + num_kv, num_kv),
        inner=_padded_span(model.intermediate_size, rank, size, INNER_ALIGNMENT),
        vocab=_padded_span(model.vocab_size, rank, size, VOCAB_ALIGNMENT),
    )


def _padded_span(total: int, rank: int, size: int, alignment: int) -> Span:
    """Rank's part of `total`: the whole of it, unpadded, when it is alone."""
    if size == 1:
        return Span(0, total, total)
    width = -(-total // (size * alignment)) * alignment
    return Span(min(rank * width, total), min((rank + 1) * width, total), width)
