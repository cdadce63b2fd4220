"""Rotary frequencies against transformers' own, for every scaling kind and option."""

from typing import Any

import msgspec
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from albireo.checkpoint.rope import RopeFields, rope_config
from albireo.gpu_worker.rope import rope_table

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 256}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5},
        LLAMA3,
        {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"},
        YARN,
        YARN | {"factor": None},
        YARN | {"factor": 0.5},
        YARN | {"attention_factor": 1.5},
        YARN | {"beta_fast": 16.0, "beta_slow": 2.0},
        YARN | {"mscale": 0.707, "mscale_all_dim": 1.2},
        YARN | {"mscale": 0.707},
        YARN | {"truncate": False},
        YARN | {"original_max_position_embeddings": 4},
    ],
)
def test_table_is_that_of_transformers(parameters: dict[str, Any], head_dim: int) -> None:
    config = LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, max_position_embeddings=1024, rope_parameters=dict(parameters)
    )
    positions = torch.arange(1024)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    rope = rope_config(msgspec.convert(parameters, RopeFields), None, None, 1024)
    table = rope_table(rope, head_dim, 1024)
    # angles reach 1024, where fp32 is good to 6e-5
    torch.testing.assert_close(table[:, 0], cos[0, :, : head_dim // 2], atol=1e-4, rtol=0)
    torch.testing.assert_close(table[:, 1], sin[0, :, : head_dim // 2], atol=1e-4, rtol=0)
