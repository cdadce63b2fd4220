"""`bench latency`: how long a batch of a fixed size takes, from sending it to the last token of its last answer."""

import asyncio

import numpy as np
import uvloop
from msgspec import Struct

from albireo.bench.datasets import make_prompts
from albireo.bench.own_engine import addressed, duration_s, load_settings, own_engine, waves
from albireo.bench.progress import progress_bar
from albireo.bench.prompts import load_tokenizer
from albireo.bench.settings import SettingsError
from albireo.engine_file import EngineInfo

PERCENTILES = (10, 25, 50, 75, 90, 99)


class LatencySettings(Struct, frozen=True):
    """One run, named as its flags."""

    model: str
    batch_size: int
    input_len: int
    output_len: int
    num_iters: int
    num_iters_warmup: int
    serve_flags: tuple[str, ...]


def check(settings: LatencySettings) -> None:
    """Raises SettingsError."""
    least = {"batch_size": 1, "input_len": 1, "output_len": 1, "num_iters": 1, "num_iters_warmup": 0}
    for name, bound in least.items():
        if getattr(settings, name) < bound:
            flag = "--" + name.replace("_", "-")
            raise SettingsError(f"{flag} must be at least {bound}, not {getattr(settings, name)}")


def measure_latency(settings: LatencySettings) -> list[float]:
    """Seconds by iteration. Raises WaveError, PromptError, EngineProcessError."""
    with (
        own_engine(settings.model, settings.serve_flags) as engine,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(_iterate(settings, engine))


class LatencyResult(Struct, frozen=True):
    """Seconds, named as in `vllm bench latency --output-json`."""

    avg_latency: float
    latencies: list[float]
    percentiles: dict[str, float]


def summarise(latencies: list[float]) -> LatencyResult:
    """At least one iteration's."""
    percentiles = {str(p): float(np.percentile(latencies, p)) for p in PERCENTILES}
    return LatencyResult(float(np.mean(latencies)), latencies, percentiles)


async def _iterate(settings: LatencySettings, engine: EngineInfo) -> list[float]:
    load = load_settings(settings.model, settings.batch_size, settings.input_len, settings.output_len)
    load = addressed(load, engine, settings.serve_flags)
    _, prompts = make_prompts(load, load_tokenizer(settings.model))
    latencies = []
    async with waves(load, prompts) as batch:
        async with progress_bar("warming up with", settings.num_iters_warmup, "batches") as advance:
            for _ in range(settings.num_iters_warmup):
                await batch.send()
                advance()
        async with progress_bar("measuring", settings.num_iters, "batches") as advance:
            for _ in range(settings.num_iters):
                latencies.append(duration_s(await batch.send()))
                advance()
    return latencies
