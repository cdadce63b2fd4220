"""A model and a device in round numbers, whose step times can be worked out by hand."""

from typing import Any, Final

from msgspec.structs import replace

from albireo.checkpoint.structs import ModelConfig, RopeConfig
from albireo.sim.spec import DeviceSpec, Efficiency, Flops, Link, Overhead, Power, Sampling

_MODEL: Final = ModelConfig(
    architecture="LlamaForCausalLM", vocab_size=2048, hidden_size=512, intermediate_size=1024, num_layers=2,
    num_heads=8, num_kv_heads=4, head_dim=64, rms_norm_eps=1e-6, rope=RopeConfig(), max_position_embeddings=8192,
    tie_word_embeddings=False, qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm=False,
    sliding_windows=(None, None), dtype="bfloat16", eos_token_ids=(0,), bos_token_id=None,
)  # fmt: skip
_DEVICE: Final = DeviceSpec(
    name="round", source="made up", flops=Flops(1e12, 5e11), memory_bandwidth=1e9, memory_bytes=1 << 30,
    host_bandwidth=1e8, link=Link(1e9, 0.0), efficiency=Efficiency(1.0, 1.0, 1.0, 1.0, 1.0),
    overhead=Overhead(0.0, 0.0, 0.0, 0.0), sampling=Sampling(0.0, 0.0), power=Power(50.0, 250.0),
)  # fmt: skip


def model(**changes: Any) -> ModelConfig:
    """Two layers of 8 heads of 64, 4 KV heads; inner 1024, vocabulary 2048."""
    return replace(_MODEL, **changes)


def device(**changes: Any) -> DeviceSpec:
    """1 TFLOP/s in bfloat16, 1 GB/s of memory, 1 GB/s of link; nothing is lost, and nothing is fixed."""
    return replace(_DEVICE, **changes)
