"""What a decode step costs a rank without its sampling: forward pass and LM head of the 0.6B shape (Qwen3-0.6B's).

The other side of bench_sampling_modes.py's "share of the step". Weights are constants: their values change no time.
"""

import time

import numpy as np
import torch

from albireo.checkpoint.shard import shard_model
from albireo.checkpoint.structs import ModelConfig, RopeConfig, kv_bytes_per_block
from albireo.checkpoint.weight_shapes import weight_shapes
from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.cpu import make_attention
from albireo.gpu_worker.collectives.interface import Collectives
from albireo.gpu_worker.cpu_backend import CpuBackend
from albireo.gpu_worker.kv_cache import KVCache
from albireo.gpu_worker.models.decoder import DecoderModel

CONTEXT = 128
"""Tokens of each sequence."""
BLOCK_SIZE = 16
STEPS = {1: 20, 32: 8}
WARM_UP_STEPS = 2


class ConstantWeights:
    """`Weights` of the right shapes."""

    def __init__(self, config: ModelConfig) -> None:
        self._shapes = weight_shapes(config)

    def get(self, name: str, rows: slice = slice(None), columns: slice = slice(None)) -> torch.Tensor:
        shape = self._shapes[name]
        sizes = [len(range(*part.indices(size))) for part, size in zip((rows, columns), shape, strict=False)]
        return torch.full(sizes, 0.01, dtype=torch.bfloat16)

    def drop_pages(self) -> None:
        pass

    def release(self) -> None:
        pass


def config_of(vocab_size: int) -> ModelConfig:
    return ModelConfig(
        architecture="Qwen3ForCausalLM", vocab_size=vocab_size, hidden_size=1024, intermediate_size=3072,
        num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128, rms_norm_eps=1e-6, rope=RopeConfig(),
        max_position_embeddings=1024, tie_word_embeddings=True, qkv_bias=False, o_bias=False, mlp_bias=False,
        qk_norm=True, sliding_windows=(None,) * 28, dtype="bfloat16", eos_token_ids=(0,), bos_token_id=None,
    )  # fmt: skip


class RankStep:
    """One rank's decode steps."""

    def __init__(self, vocab_size: int, collectives: Collectives) -> None:
        config = config_of(vocab_size)
        shard = shard_model(config, collectives.rank, collectives.size)
        self._local = shard.local(config)
        local = self._local
        attention = make_attention(torch.bfloat16, local.num_heads, local.num_kv_heads, local.head_dim, BLOCK_SIZE)
        weights = ConstantWeights(config)
        self._model = DecoderModel(config, shard, weights, torch.bfloat16, attention, collectives, 1024, CpuBackend())

    @torch.inference_mode()
    def seconds(self, batch: int) -> float:
        """Median CPU time of this thread for a step of `batch` sequences, collectives' copying included."""
        blocks_per_seq = CONTEXT // BLOCK_SIZE
        num_blocks = batch * blocks_per_seq
        cache_bytes = num_blocks * kv_bytes_per_block(self._local, BLOCK_SIZE, "bfloat16")
        cache = KVCache.allocate(self._local, "bfloat16", BLOCK_SIZE, cache_bytes)
        table = torch.randperm(num_blocks).view(batch, blocks_per_seq).to(torch.int32)
        positions = torch.full((batch,), CONTEXT - 1)
        inputs = AttentionBatch(
            block_table=table,
            slots=torch.arange(batch, dtype=torch.int32),
            query_start=torch.arange(batch + 1, dtype=torch.int32),
            seq_lens=torch.full((batch,), CONTEXT, dtype=torch.int32),
            slot_mapping=table[:, -1].long() * BLOCK_SIZE + BLOCK_SIZE - 1,
            num_decodes=batch,
            max_query_len=1,
            max_seq_len=CONTEXT,
        )
        times = []
        for _ in range(STEPS.get(batch, 3) + WARM_UP_STEPS):
            begin = time.thread_time()
            hidden = self._model.forward(torch.zeros(batch, dtype=torch.int64), positions, inputs, cache)
            self._model.compute_logits(hidden)
            times.append(time.thread_time() - begin)
        return float(np.median(times[WARM_UP_STEPS:]))
