"""Where a checkpoint's tensors lie: safetensors headers and the index of sharded checkpoints. No data is read."""

import math
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta, Raw, Struct

from albireo.checkpoint.files import MAX_INDEX_BYTES, decode_json, read_json
from albireo.checkpoint.structs import CheckpointError

MAX_HEADER_BYTES: Final = 100_000_000
"""The safetensors format's own bound on a header."""

DTYPE_BYTES: Final = {"BF16": 2, "F16": 2, "F32": 4}
"""Stored dtypes that can be loaded."""

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt")

Natural = Annotated[int, Meta(ge=0)]


class StoredTensor(Struct, frozen=True):
    """One tensor in a safetensors file."""

    file: str
    """File name within the checkpoint folder."""
    dtype: str
    """As the header has it: BF16, F16, F32 and others."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""
    nbytes: int


class _HeaderEntry(Struct, frozen=True):
    dtype: str
    shape: tuple[Natural, ...]
    data_offsets: tuple[Natural, Natural]


class _Index(Struct, frozen=True):
    weight_map: dict[str, str]


def read_stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder `path` by name, after checking that each file is as long as its header says.

    Like transformers, one model.safetensors goes before an index. Raises `CheckpointError`.
    """
    if (path / SINGLE_FILE).is_file():
        return read_header(path / SINGLE_FILE)
    if not (path / INDEX_FILE).is_file():
        raise CheckpointError(_no_weights(path))
    weight_map = read_json(path / INDEX_FILE, _Index, MAX_INDEX_BYTES).weight_map
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise CheckpointError(f"{INDEX_FILE} names {file!r}, which is no plain file name")
        if not (path / file).is_file():
            raise CheckpointError(f"{path / file} is missing, but {INDEX_FILE} names it; download it again")
        stored = read_header(path / file)
        tensors.update((name, stored[name]) for name in stored if weight_map.get(name) == file)
    for name, file in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"{file} has no tensor {name}, but {INDEX_FILE} says so; download both again")
    return tensors


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file.

    The format is 8 bytes of little-endian header length, a JSON header, then the data that it gives offsets into.
    """
    try:
        file_bytes = file.stat().st_size
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            if file_bytes < 8 or header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
                raise CheckpointError(f"{file} is truncated or no safetensors file; download it again")
            header = stream.read(header_bytes)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    entries = decode_json(header, dict[str, Raw], f"the header of {file}")
    entries.pop("__metadata__", None)
    start = 8 + header_bytes
    tensors = {name: _stored_tensor(file, name, bytes(raw), start) for name, raw in entries.items()}
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=start)
    if end > file_bytes:
        raise CheckpointError(f"{file} is truncated: {file_bytes} bytes of {end}; download it again")
    return tensors


def _stored_tensor(file: Path, name: str, raw: bytes, start: int) -> StoredTensor:
    entry = decode_json(raw, _HeaderEntry, f"the header of {file}, {name}")
    begin, end = entry.data_offsets
    item_bytes = DTYPE_BYTES.get(entry.dtype)
    if end < begin or (item_bytes is not None and end - begin != math.prod(entry.shape) * item_bytes):
        raise CheckpointError(f"the header of {file} gives {name} a size that is not its shape's; download it again")
    return StoredTensor(file.name, entry.dtype, entry.shape, start + begin, end - begin)


def _no_weights(path: Path) -> str:
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if pickles:
        return (
            f"{path} has no safetensors, only {pickles[0]}: pickle files can run code and are not loaded; "
            "convert them with transformers' save_pretrained"
        )
    return f"{path} has neither {SINGLE_FILE} nor {INDEX_FILE}; download the checkpoint again"
