"""config.json -> `ModelConfig`, for files written by transformers 4 and 5. What we don't support is refused."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from msgspec import UNSET, Meta, Struct, UnsetType

from albireo.checkpoint.families import FAMILIES, Family
from albireo.checkpoint.files import read_json
from albireo.checkpoint.rope import RopeFields, Theta, rope_config
from albireo.checkpoint.structs import CheckpointError, ModelConfig

Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
EosField = TokenId | list[TokenId] | None
StoredDtype = Literal["bfloat16", "float16", "float32"]

# Every head_dim up to here keeps a row of the attention kernels' scratch small; real ones are 64 to 256.
MAX_HEAD_DIM = 1024


class ConfigFields(Struct, frozen=True):
    """The keys of config.json that we read. UNSET marks keys whose absence means something else than null."""

    architectures: list[str] | None = None
    auto_map: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None
    vocab_size: Size | None = None
    hidden_size: Size | None = None
    intermediate_size: Size | None = None
    num_hidden_layers: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    num_attention_heads: Size | None = None
    num_key_value_heads: Size | UnsetType | None = UNSET
    head_dim: Annotated[int, Meta(ge=1, le=MAX_HEAD_DIM)] | UnsetType | None = UNSET
    hidden_act: str = "silu"
    rms_norm_eps: Annotated[float, Meta(gt=0, lt=1)] = 1e-6
    max_position_embeddings: Size | None = None
    original_max_position_embeddings: Size | None = None
    rope_theta: Theta | None = None
    rope_scaling: RopeFields | None = None
    rope_parameters: RopeFields | None = None
    partial_rotary_factor: float | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: Size | UnsetType | None = UNSET
    use_sliding_window: bool = False
    max_window_layers: Annotated[int, Meta(ge=0)] = 28
    layer_types: list[str] | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    """`dtype`'s name before transformers 5."""
    bos_token_id: TokenId | UnsetType | None = UNSET
    eos_token_id: EosField | UnsetType = UNSET


def read_model_config(path: Path) -> tuple[ModelConfig, bool]:
    """The `ModelConfig` of the folder `path`, and whether config.json named a dtype (else `dtype` is a guess).

    `eos_token_ids` are config.json's own. Raises `CheckpointError`.
    """
    fields = read_json(path / "config.json", ConfigFields)
    architecture, family = _family(fields)
    _refuse_unsupported(fields)
    num_layers = _required(fields, "num_hidden_layers")
    num_heads, num_kv_heads, head_dim = _heads(fields, family)
    max_positions = fields.max_position_embeddings or family.max_position_embeddings
    vocab_size = _required(fields, "vocab_size")
    eos = family.eos_token_id if isinstance(fields.eos_token_id, UnsetType) else fields.eos_token_id
    rope_fields = fields.rope_scaling or fields.rope_parameters or RopeFields()
    dtype = _dtype(fields)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=_required(fields, "hidden_size"),
        intermediate_size=_required(fields, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.rms_norm_eps,
        rope=rope_config(rope_fields, fields.rope_theta, fields.original_max_position_embeddings, max_positions),
        max_position_embeddings=max_positions,
        tie_word_embeddings=fields.tie_word_embeddings,
        qkv_bias=_flag(fields, family.qkv_bias),
        o_bias=_flag(fields, family.o_bias),
        mlp_bias=_flag(fields, family.mlp_bias),
        qk_norm=family.qk_norm,
        sliding_windows=_windows(fields, family, num_layers),
        dtype=dtype or "float32",
        eos_token_ids=eos_ids(eos, vocab_size, "config.json"),
        bos_token_id=family.bos_token_id if isinstance(fields.bos_token_id, UnsetType) else fields.bos_token_id,
    )
    return config, dtype is not None


def eos_ids(eos: EosField, vocab_size: int, file: str) -> tuple[int, ...]:
    """`eos_token_id` as stored (one id, several or none) as a tuple without repeats."""
    ids = (eos,) if isinstance(eos, int) else tuple(dict.fromkeys(eos or ()))
    for token_id in ids:
        if token_id >= vocab_size:
            raise CheckpointError(f"{file}: eos_token_id {token_id} is outside the vocabulary of {vocab_size}")
    return ids


def _family(fields: ConfigFields) -> tuple[str, Family]:
    for name in fields.architectures or ():
        if name in FAMILIES:
            return name, FAMILIES[name]
    named = ", ".join(fields.architectures or ()) or "none named"
    own_code = "; the checkpoint's own code (auto_map) is never run" if fields.auto_map else ""
    raise CheckpointError(f"architecture {named} is not supported (only {', '.join(FAMILIES)}){own_code}")


def _refuse_unsupported(fields: ConfigFields) -> None:
    if fields.quantization_config is not None:
        method = fields.quantization_config.get("quant_method", "unknown")
        raise CheckpointError(f"quantized checkpoints ({method}) are not supported; use the bf16, fp16 or fp32 one")
    if fields.hidden_act != "silu":
        raise CheckpointError(f"config.json: hidden_act {fields.hidden_act!r} is not supported (only 'silu')")
    if fields.partial_rotary_factor not in (None, 1.0):
        raise CheckpointError(
            f"config.json: partial_rotary_factor {fields.partial_rotary_factor:g} is not supported (only 1)"
        )


def _required(fields: ConfigFields, name: str) -> int:
    value = getattr(fields, name)
    if value is None:
        raise CheckpointError(f"config.json: {name!r} is missing")
    assert isinstance(value, int)
    return value


def _flag(fields: ConfigFields, choice: bool | str) -> bool:
    return choice if isinstance(choice, bool) else bool(getattr(fields, choice))


def _heads(fields: ConfigFields, family: Family) -> tuple[int, int, int]:
    """(query heads, key/value heads, head_dim)"""
    hidden_size, num_heads = _required(fields, "hidden_size"), _required(fields, "num_attention_heads")
    stored = fields.num_key_value_heads
    num_kv_heads = (family.num_kv_heads if isinstance(stored, UnsetType) else stored) or num_heads
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}"
        )
    head_dim = family.head_dim if isinstance(fields.head_dim, UnsetType) else fields.head_dim
    if head_dim is None:
        if hidden_size % num_heads:
            raise CheckpointError(
                f"config.json: hidden_size {hidden_size} is no multiple of num_attention_heads {num_heads}, "
                "and there is no head_dim"
            )
        head_dim = hidden_size // num_heads
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise CheckpointError(f"config.json: head_dim {head_dim} must be even and at most {MAX_HEAD_DIM}")
    return num_heads, num_kv_heads, head_dim


def _windows(fields: ConfigFields, family: Family, num_layers: int) -> tuple[int | None, ...]:
    window = family.sliding_window if isinstance(fields.sliding_window, UnsetType) else fields.sliding_window
    if family.windows == "none" or (family.windows == "use_sliding_window" and not fields.use_sliding_window):
        window = None
    first = fields.max_window_layers if family.windows == "use_sliding_window" else 0
    derived = tuple(window if layer >= first else None for layer in range(num_layers))
    if fields.layer_types is None:
        return derived
    if len(fields.layer_types) != num_layers:
        raise CheckpointError(f"config.json: {len(fields.layer_types)} layer_types for {num_layers} layers")
    stored = tuple(_layer_window(kind, window) for kind in fields.layer_types)
    if family.windows != "use_sliding_window" and stored != derived:
        # transformers ignores layer_types here and other engines obey it: no guess is right for every checkpoint.
        raise CheckpointError("config.json: layer_types contradicts sliding_window; remove one of the two")
    return stored


def _layer_window(kind: str, window: int | None) -> int | None:
    if kind == "full_attention":
        return None
    if kind != "sliding_attention":
        raise CheckpointError(f"config.json: layer type {kind!r} is not supported (full_attention, sliding_attention)")
    if window is None:
        raise CheckpointError("config.json: layer_types has sliding_attention, but no sliding_window is in use")
    return window


def _dtype(fields: ConfigFields) -> StoredDtype | None:
    name = (fields.dtype or fields.torch_dtype or "").removeprefix("torch.")
    if name in ("", "auto"):
        return None
    for dtype in get_args(StoredDtype):
        if dtype == name:
            return dtype  # type: ignore[no-any-return]
    raise CheckpointError(f"config.json: dtype {name!r} is not supported (only {', '.join(get_args(StoredDtype))})")
