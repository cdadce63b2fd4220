"""Every weight belongs to one rank, whatever the sizes; what cannot be divided is refused."""

from typing import Any

import pytest

from albireo.checkpoint.shard import ModelShard, shard_model
from albireo.checkpoint.structs import CheckpointError, ModelConfig, RopeConfig


def model_of(**sizes: Any) -> ModelConfig:
    settings: dict[str, Any] = {
        "architecture": "Qwen3ForCausalLM", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_layers": 28, "num_heads": 16, "num_kv_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6,
        "rope": RopeConfig(), "max_position_embeddings": 40_960, "tie_word_embeddings": True, "qkv_bias": False,
        "o_bias": False, "mlp_bias": False, "qk_norm": True, "sliding_windows": (None,) * 28, "dtype": "bfloat16",
        "eos_token_ids": (0,), "bos_token_id": None,
    }  # fmt: skip
    return ModelConfig(**(settings | sizes))


def shards(config: ModelConfig, size: int) -> list[ModelShard]:
    return [shard_model(config, rank, size) for rank in range(size)]


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("inner", [16, 100, 3072])
@pytest.mark.parametrize("vocab", [300, 32_000, 151_936, 151_937])
def test_every_row_belongs_to_one_rank_and_all_widths_are_equal(size: int, inner: int, vocab: int) -> None:
    parts = shards(model_of(num_heads=840, num_kv_heads=840, intermediate_size=inner, vocab_size=vocab), size)
    for name, total in (("inner", inner), ("vocab", vocab), ("heads", 840), ("kv_heads", 840)):
        spans = [getattr(part, name) for part in parts]
        assert [row for span in spans for row in range(span.start, span.end)] == list(range(total))
        assert len({span.width for span in spans}) == 1
        assert all(span.width >= span.size for span in spans)
    if size > 1:
        assert all(part.vocab.start % 128 == 0 or not part.vocab.size for part in parts)


def test_fewer_kv_heads_than_ranks_are_held_by_neighbours() -> None:
    parts = shards(model_of(num_kv_heads=2), 8)
    assert [part.kv_heads.start for part in parts] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert {part.kv_heads.size for part in parts} == {1}
    # 16 query heads in 8 ranks: each rank's two belong to its KV head
    assert all(head // 8 == part.kv_heads.start for part in parts for head in range(part.heads.start, part.heads.end))


def test_heads_that_cannot_be_divided_are_refused_with_the_numbers() -> None:
    with pytest.raises(CheckpointError, match="tensor-parallel size 3 does not divide the model's 16 attention heads"):
        shard_model(model_of(), 0, 3)
    with pytest.raises(CheckpointError, match="size 4 neither divides the model's 6 KV heads nor is a multiple"):
        shard_model(model_of(num_heads=12, num_kv_heads=6), 0, 4)
