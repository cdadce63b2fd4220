"""What a simulated device can do: a TOML or JSON file, or one of the presets beside this module.

Peak rates come from a datasheet, which `source` names; `efficiency`, the fixed times and `sampling` say what of them a
program gets, and are measured (`tools/calibrate_cpu.py`) or assumed.
"""

import json
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

PRESETS: Final = Path(__file__).parent / "presets"
MAX_SPEC_BYTES: Final = 1 << 20

Rate = Annotated[float, Meta(ge=1e6, le=1e20)]
"""Per second. NaN is within no bounds."""
Share = Annotated[float, Meta(ge=0.001, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=1)]
Text = Annotated[str, Meta(min_length=1, max_length=1000)]


class SpecError(Exception):
    """A spec that cannot be had or used; the text is one line that names the file, the field and the bound."""


class Flops(Struct, frozen=True, forbid_unknown_fields=True):
    """FLOP/s of matrix products, dense (without sparsity), by dtype."""

    bfloat16: Rate
    float32: Rate


class Efficiency(Struct, frozen=True, forbid_unknown_fields=True):
    """What programs get of the peak rates."""

    flops: Share
    """Large products."""
    bandwidth: Share
    """Products of few rows, which read their weights; element-wise kernels; sampling."""
    attention_flops: Share
    attention_bandwidth: Share
    link: Share
    """Large collectives."""
    host: Share = 1.0
    """Block copies to the host's memory and back. Spec files from before this was asked for have all of it."""


class Link(Struct, frozen=True, forbid_unknown_fields=True):
    """Between the GPUs of a node."""

    bandwidth: Rate
    """Bytes/s of one GPU, in each direction."""
    latency_s: Seconds
    """Of one collective of next to nothing."""


class Overhead(Struct, frozen=True, forbid_unknown_fields=True):
    """Times that do not depend on a step's size, in seconds."""

    step_s: Seconds
    """Once a step: a captured graph's launch behind the last one, inputs, state."""
    kernel_s: Seconds
    """A kernel's start and end on the device, within a graph."""
    attention_s: Seconds
    """The same of an attention kernel, which is split and put together again."""
    launch_s: Seconds
    """Of one kernel by the host: a step that is no captured graph takes at least its launches."""


class Sampling(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one rank's sampler, at a temperature and with top_p."""

    fixed_s: Seconds
    """Once a step, its kernels' starts included."""
    bytes_per_logit: Annotated[float, Meta(ge=0, le=10_000)]
    """Memory traffic, over all passes."""


class Power(Struct, frozen=True, forbid_unknown_fields=True):
    """Watts of one GPU."""

    idle: Annotated[float, Meta(ge=0, le=100_000)]
    max: Annotated[float, Meta(gt=0, le=100_000)]


class DeviceSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """One GPU, and its links to the others of the node and to the host."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\w .:+-]+\Z")]
    source: Text
    """Of the peak rates, the memory and the power: a datasheet's name and address, or how they were measured."""
    flops: Flops
    memory_bandwidth: Rate
    """Bytes/s."""
    memory_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 50)]
    host_bandwidth: Rate
    """Bytes/s in each direction between the device and its host's memory."""
    link: Link
    efficiency: Efficiency
    overhead: Overhead
    sampling: Sampling
    power: Power
    contention: Annotated[float, Meta(ge=0, le=10)] = 0.0
    """A rank's work takes 1 + contention x (ranks - 1) times as long as one rank's alone: what ranks on one CPU take
    from each other. 0 for GPUs, which have memory of their own."""

    def __post_init__(self) -> None:
        if self.power.max < self.power.idle:
            raise ValueError(f"power.max ({self.power.max:g}) is below power.idle ({self.power.idle:g})")


def preset_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in PRESETS.glob("*.toml")))


def read_spec(name: str) -> DeviceSpec:
    """The preset `name`, or the file of that path: JSON if it ends in `.json`, else TOML. Raises SpecError."""
    if name in preset_names():
        return _read_file(PRESETS / f"{name}.toml")
    path = Path(name)
    if "/" not in name and path.suffix not in (".toml", ".json") and not path.is_file():
        raise SpecError(f"no preset {name!r}: there are {', '.join(preset_names())}, or name a spec file by its path")
    return _read_file(path)


def _read_file(path: Path) -> DeviceSpec:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise SpecError(f"cannot read the spec {path}: {error.strerror}") from error
    if len(data) > MAX_SPEC_BYTES:
        raise SpecError(f"the spec {path} is longer than {MAX_SPEC_BYTES} bytes")
    return decode_spec(data, str(path), is_json=path.suffix == ".json")


def decode_spec(data: bytes, name: str, is_json: bool) -> DeviceSpec:
    """`name` is the file's, for errors. Raises SpecError."""
    try:
        if is_json:
            return msgspec.json.decode(data, type=DeviceSpec)
        return msgspec.toml.decode(data, type=DeviceSpec)
    except msgspec.ValidationError as error:
        raise SpecError(f"{name}: {_in_words(str(error))}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"{name} is no {'JSON' if is_json else 'TOML'}: {error}") from error


def _in_words(error: str) -> str:
    """msgspec's `Expected `float` <= 1.0 - at `$.efficiency.link`` -> `efficiency.link: expected float <= 1.0`."""
    text, at, place = error.rpartition(" - at ")
    if not at:
        text, place = error, ""
    text = text.replace("`", "")
    field, text = place.strip("`").removeprefix("$").removeprefix("."), text[:1].lower() + text[1:]
    return f"{field}: {text}" if field else text


def encode_spec(spec: DeviceSpec) -> str:
    """As a TOML file."""
    fields = msgspec.to_builtins(spec)
    lines = [f"{name} = {_toml(value)}" for name, value in fields.items() if not isinstance(value, dict)]
    for table, values in fields.items():
        if isinstance(values, dict):
            lines += ["", f"[{table}]", *(f"{name} = {_toml(value)}" for name, value in values.items())]
    return "\n".join(lines) + "\n"


def _toml(value: str | float) -> str:
    # a JSON string is a basic string of TOML too, once it is ASCII
    return json.dumps(value) if isinstance(value, str) else repr(value)
