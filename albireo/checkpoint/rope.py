"""The rotary part of config.json, old style (`rope_theta` + `rope_scaling`) or new (`rope_parameters`)."""

from typing import Annotated, Any, Literal, cast

from msgspec import Meta, Struct

from albireo.checkpoint.structs import CheckpointError, RopeConfig

Positive = Annotated[float, Meta(gt=0)]
Theta = Annotated[float, Meta(gt=1)]
RopeType = Literal["default", "linear", "llama3", "yarn"]
SUPPORTED: tuple[RopeType, ...] = ("default", "linear", "llama3", "yarn")


class RopeFields(Struct, frozen=True):
    """`rope_scaling` or `rope_parameters` as stored; keys that are not listed belong to rope types not supported."""

    rope_type: str | None = None
    type: str | None = None
    """`rope_type`'s name before transformers 4.43."""
    rope_theta: Theta | None = None
    factor: Positive | None = None
    original_max_position_embeddings: Annotated[int, Meta(ge=1)] | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    partial_rotary_factor: float | None = None
    mrope_section: Any = None
    full_attention: Any = None
    sliding_attention: Any = None
    """The last three mark kinds of rope that we don't have: by axis, or one per layer type."""


def rope_config(
    fields: RopeFields, theta: float | None, original_max_positions: int | None, max_positions: int
) -> RopeConfig:
    """The rope of a model, with what transformers would fill in filled in.

    `theta` and `original_max_positions` are config.json's own fields of those names, where it has them (the latter
    wins over the one inside `fields`, as in transformers); `max_positions` is its `max_position_embeddings`.
    """
    rope_type = fields.rope_type or fields.type or "default"
    if rope_type not in SUPPORTED:
        raise CheckpointError(f"config.json: rope type {rope_type!r} is not supported (only {', '.join(SUPPORTED)})")
    if fields.mrope_section or fields.full_attention or fields.sliding_attention:
        raise CheckpointError("config.json: rope by axis (mrope_section) or by layer type is not supported")
    if fields.partial_rotary_factor not in (None, 1.0):
        raise CheckpointError(
            f"config.json: partial_rotary_factor {fields.partial_rotary_factor:g} is not supported (only 1)"
        )
    theta = fields.rope_theta or theta or 10_000.0
    if rope_type == "default":
        return RopeConfig(theta=theta)
    if rope_type == "linear":
        return RopeConfig(rope_type="linear", theta=theta, factor=_required(fields, "factor"))
    original = original_max_positions or fields.original_max_position_embeddings or max_positions
    if rope_type == "llama3":
        low, high = _required(fields, "low_freq_factor"), _required(fields, "high_freq_factor")
        if high <= low:
            raise CheckpointError("config.json: llama3 rope needs high_freq_factor > low_freq_factor")
        return RopeConfig(
            rope_type="llama3",
            theta=theta,
            factor=_required(fields, "factor"),
            original_max_position_embeddings=original,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    return RopeConfig(
        rope_type="yarn",
        theta=theta,
        factor=fields.factor or max_positions / original,
        original_max_position_embeddings=original,
        attention_factor=fields.attention_factor,
        beta_fast=fields.beta_fast,
        beta_slow=fields.beta_slow,
        mscale=fields.mscale,
        mscale_all_dim=fields.mscale_all_dim,
        truncate=fields.truncate is not False,
    )


def _required(fields: RopeFields, name: str) -> float:
    value = getattr(fields, name)
    if value is None:
        raise CheckpointError(f"config.json: rope type {fields.rope_type or fields.type!r} needs {name!r}")
    return cast(float, value)
