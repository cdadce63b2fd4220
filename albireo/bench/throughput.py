"""`bench throughput`: all prompts at once, and how long until the last answer has ended."""

import asyncio

import uvloop
from msgspec import Struct

from albireo.bench.datasets import make_prompts
from albireo.bench.own_engine import addressed, duration_s, own_engine, waves
from albireo.bench.prompts import load_tokenizer
from albireo.bench.settings import ServeBenchSettings


class Throughput(Struct, frozen=True):
    """Named as in `vllm bench throughput --output-json`."""

    elapsed_time: float
    num_requests: int
    total_num_tokens: int
    """Of prompts and answers."""
    requests_per_second: float
    tokens_per_second: float
    output_tokens_per_second: float
    """Ours."""


def measure_throughput(model: str, load: ServeBenchSettings, serve_flags: tuple[str, ...]) -> Throughput:
    """Raises WaveError, PromptError, EngineProcessError."""
    with (
        own_engine(model, serve_flags) as engine,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(_all_at_once(model, addressed(load, engine, serve_flags)))


async def _all_at_once(model: str, load: ServeBenchSettings) -> Throughput:
    _, prompts = make_prompts(load, load_tokenizer(load.tokenizer or model))
    async with waves(load, prompts) as wave:
        outcomes = await wave.send("measuring")
    seconds = duration_s(outcomes)
    output = sum(outcome.output_tokens for outcome in outcomes)
    total = output + sum(outcome.prompt_tokens for outcome in outcomes)
    return Throughput(seconds, len(outcomes), total, len(outcomes) / seconds, total / seconds, output / seconds)
