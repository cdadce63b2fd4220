"""What a checkpoint folder says about its model, read without torch: architecture, sizes, rope, EOS ids, defaults.

A leaf: the supervisor reads it before any process starts (so that a bad folder is one clear line), and hands the
result to the frontend, the coordinator and the workers as part of their configs.
"""

from typing import Literal

from msgspec import Struct


class RopeConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Rotary embedding of one kind; fields of other kinds stay None. Names as in Hugging Face configs."""

    rope_type: Literal["default", "linear", "llama3", "yarn"] = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


class ModelConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """One decoder-only transformer, as the worker builds it. Sizes are of the whole model, not of a rank's share."""

    architecture: str
    """As in config.json, e.g. `Qwen3ForCausalLM`."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]
    """Per layer: how many of the last positions a query sees, itself included; None is all."""
    dtype: Literal["bfloat16", "float16", "float32"]
    """The dtype the weights are stored in."""
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None


class GenerationDefaults(Struct, frozen=True, forbid_unknown_fields=True):
    """Sampling defaults from generation_config.json; None where it says nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None


class CheckpointError(Exception):
    """The folder cannot be served; the text is one line that says why and what to do."""
