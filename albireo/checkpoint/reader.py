"""`read_checkpoint`: the one entry to a checkpoint folder."""

from pathlib import Path
from typing import Final, Literal

from msgspec.structs import replace

from albireo.checkpoint.generation import read_generation_config
from albireo.checkpoint.model_config import read_model_config
from albireo.checkpoint.stored_tensors import read_stored_tensors
from albireo.checkpoint.structs import Checkpoint, CheckpointError
from albireo.checkpoint.weight_shapes import check_stored

_DTYPES: Final[dict[str, Literal["bfloat16", "float16", "float32"]]] = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
}


def read_checkpoint(path: str | Path, check_weights: bool = True) -> Checkpoint:
    """What the folder `path` holds, checked as far as can be without reading weights: milliseconds.

    Without `check_weights`, when random ones are to be used, config.json is the only file that must be there. Raises
    `CheckpointError`, one line that says why and what to do.
    """
    folder = Path(path).absolute()
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(f"{path} {kind}: MODEL must be a folder with config.json and safetensors")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{path} has no config.json: MODEL must be a checkpoint in Hugging Face's layout")
    model, dtype_named = read_model_config(folder)
    defaults, eos = read_generation_config(folder, model.vocab_size, model.eos_token_ids)
    model = replace(model, eos_token_ids=eos)
    if check_weights:
        stored = read_stored_tensors(folder)
        check_stored(model, stored)
        if not dtype_named:
            model = replace(model, dtype=_DTYPES[stored["model.embed_tokens.weight"].dtype])
    return Checkpoint(str(folder), model, defaults)
