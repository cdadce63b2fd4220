"""generation_config.json: what the model's authors sample with, and which ids end a text."""

from pathlib import Path
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from albireo import limits
from albireo.checkpoint.files import read_json
from albireo.checkpoint.model_config import EosField, eos_ids
from albireo.checkpoint.structs import CheckpointError, GenerationDefaults


class GenerationFields(Struct, frozen=True):
    """The keys of generation_config.json that we read, with the bounds that a client's own values have."""

    do_sample: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=limits.MAX_TEMPERATURE)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=limits.MAX_TOP_K)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: (
        Annotated[float, Meta(ge=1 / limits.MAX_REPETITION_PENALTY, le=limits.MAX_REPETITION_PENALTY)] | None
    ) = None
    eos_token_id: EosField | UnsetType = UNSET


def read_generation_config(
    path: Path, vocab_size: int, config_eos: tuple[int, ...]
) -> tuple[GenerationDefaults, tuple[int, ...]]:
    """Sampling defaults and EOS ids of the folder `path`; `config_eos` are config.json's ids, the fallback.

    The numbers are used as vLLM's `--generation-config auto` uses them: they become the defaults of requests that
    do not set the field. vLLM takes them whatever `do_sample` says; with `"do_sample": false` we take none, because
    there transformers never applies them (they are left-overs, often another model's), and OpenAI's default of
    temperature 1 is as good a guess as a left-over. An absent `do_sample` counts as true, as it does in vLLM: many
    checkpoints give numbers and leave it out.
    """
    file = path / "generation_config.json"
    fields = read_json(file, GenerationFields) if file.exists() else GenerationFields()
    eos = config_eos
    if not isinstance(fields.eos_token_id, UnsetType) and fields.eos_token_id is not None:
        eos = eos_ids(fields.eos_token_id, vocab_size, "generation_config.json")
    if len(eos) > limits.MAX_STOP_TOKEN_IDS:
        raise CheckpointError(f"{len(eos)} EOS ids: at most {limits.MAX_STOP_TOKEN_IDS} are supported")
    if fields.do_sample is False:
        return GenerationDefaults(), eos
    top_k = None if fields.top_k is None else max(fields.top_k, 0)
    defaults = GenerationDefaults(fields.temperature, fields.top_p, top_k, fields.min_p, fields.repetition_penalty)
    return defaults, eos
