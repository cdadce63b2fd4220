"""The same server with mechanisms switched off one by one, and the command line of each."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from albireo.checkpoint import CheckpointError, read_checkpoint
from albireo.checkpoint.weight_shapes import weight_bytes
from albireo.tune.serve_flags import flag_value
from albireo.tune.settings import TuneSettings

AS_GIVEN = "as served"
NO_RUN_AHEAD = "run-ahead 0"
GATHERED = "gathered sampling"
BOTH_OFF = "both off"


class Variant(Struct, frozen=True):
    """Flags behind all others, so that they count."""

    name: str
    flags: tuple[str, ...]


_NO_RUN_AHEAD_FLAGS = ("--run-ahead", "0")
_GATHERED_FLAGS = ("--sampling-mode", "gathered")
VARIANTS = (
    Variant(AS_GIVEN, ()),
    Variant(NO_RUN_AHEAD, _NO_RUN_AHEAD_FLAGS),
    Variant(GATHERED, _GATHERED_FLAGS),
    Variant(BOTH_OFF, _NO_RUN_AHEAD_FLAGS + _GATHERED_FLAGS),
)


class NoRoomError(Exception):
    """The weights leave no memory for a KV cache; the text is one line."""


def variants(settings: TuneSettings) -> tuple[Variant, ...]:
    """Those to measure."""
    return VARIANTS if settings.ablate else VARIANTS[:1]


def serve_arguments(settings: TuneSettings, degree: int, variant: Variant) -> list[str]:
    """argv of `serve` behind the model. Raises NoRoomError, CheckpointError."""
    num_replicas = settings.num_gpus // degree
    arguments = ["--tensor-parallel-size", str(degree)]
    if num_replicas > 1:
        arguments += ["--replicas", str(num_replicas)]
    if settings.tokenizer is not None:
        arguments += ["--tokenizer", settings.tokenizer]
    if settings.memory_per_gpu is not None:
        arguments += ["--kv-cache-bytes", str(kv_cache_bytes(settings, degree))]
    return [*arguments, *settings.serve_flags, *variant.flags]


def serve_command(settings: TuneSettings, degree: int, variant: Variant = VARIANTS[0]) -> str:
    """To be pasted."""
    return shlex.join(["albireo-run", "serve", settings.model, *serve_arguments(settings, degree, variant)])


def kv_cache_bytes(settings: TuneSettings, degree: int) -> int:
    """Of a replica of `degree` devices with `memory_per_gpu` each: what the weights leave. For devices whose memory the
    server does not know, the CPU's and the null device's. Raises NoRoomError, CheckpointError."""
    assert settings.memory_per_gpu is not None
    weights = model_bytes(settings.model, settings.serve_flags)
    room = degree * settings.memory_per_gpu - weights
    if room <= 0:
        raise NoRoomError(
            f"the weights take {weights / 2**20:,.0f} MiB, all that {degree} x --memory-per-gpu "
            f"{settings.memory_per_gpu / 2**20:,.0f} MiB have"
        )
    return room


def model_bytes(model: str, serve_flags: Sequence[str]) -> int:
    """Memory of the weights of one replica, in the dtype that it is served in. Raises CheckpointError."""
    if not Path(model).is_dir():
        raise CheckpointError(f"{model} is no folder of a checkpoint")
    config = read_checkpoint(model, check_weights=False).model
    asked = flag_value(serve_flags, "--dtype") or "auto"
    dtype = config.dtype if asked == "auto" else asked
    return weight_bytes(config, "float32" if dtype == "float32" else "bfloat16")
