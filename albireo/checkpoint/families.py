"""What differs between the architectures we serve, besides the sizes in config.json."""

from typing import Final, Literal

from msgspec import Struct


class Family(Struct, frozen=True):
    """One architecture's fixed choices, and the defaults of its transformers config class for absent keys."""

    qkv_bias: bool | Literal["attention_bias"]
    """Whether the q, k and v projections have biases, or the config.json key that says so."""
    o_bias: bool | Literal["attention_bias"]
    mlp_bias: bool | Literal["mlp_bias"]
    qk_norm: bool
    """RMSNorm over each query and key head, before rope."""
    windows: Literal["none", "all layers", "use_sliding_window"]
    """Which layers `sliding_window` binds; the last: those from `max_window_layers` on, if `use_sliding_window`."""
    num_kv_heads: int | None
    """None: as many as query heads."""
    head_dim: int | None
    """None: hidden_size / num_attention_heads."""
    max_position_embeddings: int
    sliding_window: int | None
    bos_token_id: int | None
    eos_token_id: int | None


FAMILIES: Final[dict[str, Family]] = {
    "LlamaForCausalLM": Family(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
        qk_norm=False,
        windows="none",
        num_kv_heads=None,
        head_dim=None,
        max_position_embeddings=2048,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "MistralForCausalLM": Family(
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows="all layers",
        num_kv_heads=8,
        head_dim=None,
        max_position_embeddings=131_072,
        sliding_window=4096,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "Qwen2ForCausalLM": Family(
        qkv_bias=True,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows="use_sliding_window",
        num_kv_heads=32,
        head_dim=None,
        max_position_embeddings=32_768,
        sliding_window=4096,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "Qwen3ForCausalLM": Family(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias=False,
        qk_norm=True,
        windows="use_sliding_window",
        num_kv_heads=32,
        head_dim=128,
        max_position_embeddings=32_768,
        sliding_window=4096,
        bos_token_id=None,
        eos_token_id=None,
    ),
}
