"""Logits cut into ranks' shares, and whole batches sampled by ranks that are threads: what tests of the sampling modes
have in common."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from thread_group import run_ranks
from torch import Tensor

from albireo.checkpoint.shard import ModelShard, shard_model
from albireo.checkpoint.structs import ModelConfig, RopeConfig
from albireo.config import SamplingMode
from albireo.gpu_worker.collectives.interface import Collectives
from albireo.gpu_worker.sampling.interface import Int32s, Int64s, SampledRows, StepSampler
from albireo.gpu_worker.sampling.modes import make_step_sampler
from albireo.gpu_worker.sampling.table import SamplingTable
from albireo.limits import MAX_LOCAL_TOP_K

T = TypeVar("T")

MODES: tuple[SamplingMode, ...] = ("gathered", "sequence-parallel", "local")


def vocab_shard(vocab_size: int, rank: int, size: int) -> ModelShard:
    """The share of some model with that vocabulary."""
    config = ModelConfig(
        architecture="LlamaForCausalLM", vocab_size=vocab_size, hidden_size=8, intermediate_size=8, num_layers=1,
        num_heads=size, num_kv_heads=size, head_dim=2, rms_norm_eps=1e-6, rope=RopeConfig(),
        max_position_embeddings=8, tie_word_embeddings=True, qkv_bias=False, o_bias=False, mlp_bias=False,
        qk_norm=False, sliding_windows=(None,), dtype="float32", eos_token_ids=(0,), bos_token_id=None,
    )  # fmt: skip
    return shard_model(config, rank, size)


def share_of(logits: Tensor, shard: ModelShard, padding: float = 1e30) -> Tensor:
    """A rank's columns; those that are padding hold what would win if it were looked at."""
    share = torch.full((len(logits), shard.vocab.width), padding, dtype=logits.dtype)
    share[:, : shard.vocab.size] = logits[:, shard.vocab.slice]
    return share


def sampling_slice(mode: SamplingMode, size: int, slots: Int32s, table: SamplingTable) -> int:
    """As the coordinator plans it."""
    num_rows = {
        "gathered": 0,
        "sequence-parallel": len(slots),
        "local": int(np.count_nonzero(table.top_k[slots] > MAX_LOCAL_TOP_K)),
    }[mode]
    return -(-num_rows // size)


def on_ranks(
    mode: SamplingMode, size: int, logits: Tensor, table: SamplingTable, work: Callable[[StepSampler, Tensor], T]
) -> list[tuple[T, int]]:
    """`work(sampler, share of the logits)` on every rank: its results and the bytes that the rank received."""
    vocab_size = logits.shape[1]

    def run(collectives: Collectives) -> tuple[T, int]:
        shard = vocab_shard(vocab_size, collectives.rank, size)
        sampler = make_step_sampler(mode, shard, vocab_size, collectives, table, logits.dtype)
        return work(sampler, share_of(logits, shard)), collectives.received_bytes

    return run_ranks(size, run)


def sample_on_ranks(
    mode: SamplingMode,
    size: int,
    logits: Tensor,
    table: SamplingTable,
    slots: Int32s,
    positions: Int64s,
    spare_slice: int = 0,
) -> tuple[SampledRows, int]:
    """One step: what all ranks agreed upon, and the bytes that rank 0 received. `spare_slice`: rows that the plan
    counted and that have ended since, per rank."""
    num_rows = sampling_slice(mode, size, slots, table) + spare_slice
    results = on_ranks(
        mode, size, logits, table, lambda sampler, share: sampler.sample(share, slots, positions, num_rows)
    )
    first, received_bytes = results[0]
    for other, _ in results[1:]:
        assert other.tokens.tobytes() == first.tokens.tobytes()
        assert np.array_equal(other.logprobs, first.logprobs)
    return first, received_bytes
