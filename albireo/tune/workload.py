"""From settings to the requests that every degree gets: the same prompts at the same times."""

import random
from collections.abc import Iterator
from math import inf

import msgspec
from tokenizers import Tokenizer

from albireo.bench.arrivals import arrival_times_s
from albireo.bench.datasets import make_prompts
from albireo.bench.own_engine import load_settings
from albireo.bench.prompts import Prompt, PromptMaker
from albireo.bench.serve import OfferedLoad
from albireo.bench.settings import ServeBenchSettings
from albireo.tune.settings import TRACE, LengthRange, TuneSettings
from albireo.tune.trace_file import read_trace


def make_loads(settings: TuneSettings, tokenizer: Tokenizer) -> dict[str, OfferedLoad]:
    """By label. All loads have the same prompts; what one leaves in a prefix cache is of no use to the next, since each
    is sent with a salt of its own. Raises PromptError."""
    if settings.trace is not None:
        arrivals = read_trace(settings.trace, settings.num_prompts, settings.trace_speed)
        maker = PromptMaker(tokenizer, settings.seed)
        prompts = [
            msgspec.structs.replace(maker.of_blocks(each.hash_ids, each.input_len), output_len=each.output_len)
            for each in arrivals
        ]
        return {TRACE: OfferedLoad([], prompts, [arrival.at_s for arrival in arrivals])}
    prompts = _dataset_prompts(settings, tokenizer)
    burstiness = inf if settings.burstiness is None else settings.burstiness
    return {
        label: OfferedLoad([], prompts, arrival_times_s(len(prompts), rate, burstiness, settings.seed).tolist())
        for label, rate in zip(settings.loads, settings.rates, strict=True)
    }


def request_settings(settings: TuneSettings) -> ServeBenchSettings:
    """How requests are sent: as many tokens as are asked for whatever they are, since answers must have the same length
    at every degree."""
    plain = load_settings(settings.model, settings.num_prompts, settings.input_len.low, None)
    return msgspec.structs.replace(
        plain,
        tokenizer=settings.tokenizer or settings.model,
        max_concurrency=settings.max_concurrency,
        temperature=settings.temperature,
        goodput=settings.goodput,
        seed=settings.seed,
    )


def _dataset_prompts(settings: TuneSettings, tokenizer: Tokenizer) -> list[Prompt]:
    if settings.dataset_name == "random":
        assert settings.output_len is not None, "random prompts have a length"
        draw = random.Random(settings.seed)
        ranges = (settings.input_len, settings.output_len)
        lengths = [(_length(draw, ranges[0]), _length(draw, ranges[1])) for _ in range(settings.num_prompts)]
        return list(_random_prompts(settings, tokenizer, lengths))
    asked = msgspec.structs.replace(
        request_settings(settings), dataset_name=settings.dataset_name, dataset_path=settings.dataset_path
    )
    _, prompts = make_prompts(asked, tokenizer)
    if settings.output_len is None:
        return prompts
    draw = random.Random(settings.seed)
    return [msgspec.structs.replace(p, output_len=_length(draw, settings.output_len)) for p in prompts]


def _length(draw: random.Random, lengths: LengthRange) -> int:
    return draw.randint(lengths.low, lengths.high)


def _random_prompts(settings: TuneSettings, tokenizer: Tokenizer, lengths: list[tuple[int, int]]) -> Iterator[Prompt]:
    """With `lengths` of prompt and answer; the shared prefix comes on top."""
    maker = PromptMaker(tokenizer, settings.seed)
    prefix = maker.make(1, settings.prefix_len, 0)[0].text if settings.prefix_len else ""
    for input_len, output_len in lengths:
        yield msgspec.structs.replace(maker.extend(prefix, settings.prefix_len + input_len), output_len=output_len)
