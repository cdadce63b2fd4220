"""The frozen results of reading a checkpoint."""

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
    """What config.json says the weights are; where it is silent, what the embedding table is stored in."""
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    @property
    def context_length(self) -> int:
        """Most tokens in a sequence that the model is made for, rope scaling included.

        `max_position_embeddings` is the answer for default and llama3 rope. Under linear and yarn scaling the field
        holds the length before scaling in some checkpoints (Qwen's yarn recipe) and after it in others; the original
        length times the factor is right for both.
        """
        if self.rope.rope_type not in ("linear", "yarn"):
            return self.max_position_embeddings
        original = self.rope.original_max_position_embeddings or self.max_position_embeddings
        return int(original * self.rope.factor)


class GenerationDefaults(Struct, frozen=True, forbid_unknown_fields=True):
    """Sampling defaults from generation_config.json; None where it says nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class Checkpoint(Struct, frozen=True, forbid_unknown_fields=True):
    """A folder that can be served."""

    path: str
    """Absolute."""
    model: ModelConfig
    defaults: GenerationDefaults


class CheckpointError(Exception):
    """The folder cannot be served; the text is one line that says why and what to do."""


_DTYPE_BYTES = {"bfloat16": 2, "float32": 4}


def kv_bytes_per_block(model: ModelConfig, block_size: int, dtype: Literal["bfloat16", "float32"]) -> int:
    """Bytes that one KV block of `block_size` tokens takes over all layers, keys and values together."""
    return 2 * model.num_layers * model.num_kv_heads * block_size * model.head_dim * _DTYPE_BYTES[dtype]
