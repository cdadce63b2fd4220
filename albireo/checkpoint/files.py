"""Bounded reading of a checkpoint's JSON files: whatever is wrong with a file is one `CheckpointError` line."""

from pathlib import Path
from typing import Final, TypeVar

import msgspec

from albireo.checkpoint.structs import CheckpointError

MAX_CONFIG_BYTES: Final = 8 * 1024 * 1024
"""Real config.json files are a few KiB; this bounds what a wrong file can make us read."""

MAX_INDEX_BYTES: Final = 64 * 1024 * 1024
"""model.safetensors.index.json has about 100 bytes per tensor."""

T = TypeVar("T")


def read_json(path: Path, type_: type[T], max_bytes: int = MAX_CONFIG_BYTES) -> T:
    """`path` decoded as `type_`; a file that is missing, too long, broken or of other types is a `CheckpointError`."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > max_bytes:
        raise CheckpointError(f"{path} is longer than {max_bytes} bytes: this is no {path.name}")
    return decode_json(data, type_, str(path))


def decode_json(data: bytes, type_: type[T], what: str) -> T:
    """`data` decoded as `type_`; `what` names it in the error."""
    try:
        return msgspec.json.decode(data, type=type_)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{what}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{what} is not valid JSON ({error}); download it again") from error
