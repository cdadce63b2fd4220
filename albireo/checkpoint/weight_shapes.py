"""Which tensors a model needs, by their names in the checkpoint, and the check that a folder has just those."""

import math
import re
from typing import Final, Literal

from albireo.checkpoint.stored_tensors import DTYPE_BYTES, StoredTensor
from albireo.checkpoint.structs import CheckpointError, ModelConfig

# Buffers that old versions of transformers stored, and that every reader computes for itself.
_IGNORED: Final = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")


def weight_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor the model is built from, in the order of the forward pass."""
    hidden, inner = model.hidden_size, model.intermediate_size
    q_size, kv_size = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (model.vocab_size, hidden)}

    def linear(name: str, rows: int, columns: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    for layer in range(model.num_layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        linear(f"{prefix}.self_attn.q_proj", q_size, hidden, model.qkv_bias)
        linear(f"{prefix}.self_attn.k_proj", kv_size, hidden, model.qkv_bias)
        linear(f"{prefix}.self_attn.v_proj", kv_size, hidden, model.qkv_bias)
        if model.qk_norm:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (model.head_dim,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (model.head_dim,)
        linear(f"{prefix}.self_attn.o_proj", hidden, q_size, model.o_bias)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        linear(f"{prefix}.mlp.gate_proj", inner, hidden, model.mlp_bias)
        linear(f"{prefix}.mlp.up_proj", inner, hidden, model.mlp_bias)
        linear(f"{prefix}.mlp.down_proj", hidden, inner, model.mlp_bias)
    shapes["model.norm.weight"] = (hidden,)
    if not model.tie_word_embeddings:
        shapes["lm_head.weight"] = (model.vocab_size, hidden)
    return shapes


def weight_bytes(model: ModelConfig, dtype: Literal["bfloat16", "float32"]) -> int:
    """Memory that the weights take in one worker. A tied embedding counts twice: the head is packed for its product
    and the table stays for look-ups (mapped from the file, if that has the engine's dtype; a copy otherwise)."""
    elements = sum(math.prod(shape) for shape in weight_shapes(model).values())
    if model.tie_word_embeddings:
        elements += model.vocab_size * model.hidden_size
    return elements * (2 if dtype == "bfloat16" else 4)


def check_stored(model: ModelConfig, stored: dict[str, StoredTensor]) -> None:
    """Raises `CheckpointError` unless `stored` is what `model` needs.

    A stored lm_head of a tied model is ignored, as transformers ignores it. Any other tensor that the model has no
    place for means that config.json and weights disagree (a bias that would be dropped, say): refused.
    """
    expected = weight_shapes(model)
    missing = [name for name in expected if name not in stored]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"the weights lack {missing[0]}{more}, which config.json's {model.architecture} needs")
    for name, shape in expected.items():
        tensor = stored[name]
        if tensor.shape != shape:
            raise CheckpointError(f"{name} has shape {tensor.shape}, but by config.json it should have {shape}")
        if tensor.dtype not in DTYPE_BYTES:
            raise CheckpointError(f"{name} is stored as {tensor.dtype}; only {', '.join(DTYPE_BYTES)} can be loaded")
    for name in stored:
        tied_head = name == "lm_head.weight" and model.tie_word_embeddings
        if name not in expected and not tied_head and not _IGNORED.fullmatch(name):
            raise CheckpointError(f"the weights have {name}, which config.json's {model.architecture} has no place for")
