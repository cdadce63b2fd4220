"""One `bench serve` run against a live server, from prompts to outcomes."""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Sequence

import msgspec
import uvloop
from msgspec import Struct
from tokenizers import Tokenizer

from albireo.bench.arrivals import arrival_times_s
from albireo.bench.connection import ConnectionPool, KeptBody
from albireo.bench.datasets import make_prompts
from albireo.bench.event_stream import CHAT_TOKENS, COMPLETION_TOKENS
from albireo.bench.gpu_use import GpuUse, GpuWatch
from albireo.bench.http_requests import completion_body, http_request
from albireo.bench.load import offer
from albireo.bench.outcome import RequestOutcome, judge
from albireo.bench.progress import progress_bar
from albireo.bench.prompts import Prompt, load_tokenizer
from albireo.bench.self_watch import ClientLoad, SelfWatch
from albireo.bench.settings import ServeBenchSettings

_MODELS_TIMEOUT_S = 30.0
_MAX_MODELS_BYTES = 1024 * 1024


class BenchError(Exception):
    """The run cannot start; the text is one line."""


class ServeRun(Struct, frozen=True):
    """What a run left behind, before any statistics."""

    model: str
    tokenizer: str
    prompts: list[Prompt]
    outcomes: list[RequestOutcome]
    client: ClientLoad
    connections_opened: int
    """During the measured part; a request that needed one waited for it."""
    warmup_s: float
    gpu: GpuUse | None = None
    """None when the server says nothing of its GPUs."""


class OfferedLoad(Struct, frozen=True):
    """What is sent, and when: made of the settings, unless a caller brings it."""

    warmups: list[Prompt]
    prompts: list[Prompt]
    due_s: list[float]
    """Seconds after the start at which each prompt is sent, ascending."""


Watch = Callable[[ConnectionPool, dict[str, str]], contextlib.AbstractAsyncContextManager[object]]
"""Of the pool and the headers of requests: entered before the measured part and left behind it."""


class _ServedModel(Struct):
    id: str
    root: str | None = None


class _ServedModels(Struct):
    data: list[_ServedModel]


def serve_bench(
    settings: ServeBenchSettings, api_key: str | None, load: OfferedLoad | None = None, watch: Watch | None = None
) -> ServeRun:
    """Runs it on a fresh uvloop. `load` takes the place of what the settings say of prompts and arrivals.
    Raises BenchError, PromptError; a failed request is an outcome, not an exception."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(settings, api_key, load, watch))


def make_load(settings: ServeBenchSettings, tokenizer: Tokenizer) -> OfferedLoad:
    """What the settings say. Raises PromptError."""
    warmups, prompts = make_prompts(settings, tokenizer)
    due_s = arrival_times_s(len(prompts), settings.request_rate, settings.burstiness, settings.seed)
    return OfferedLoad(warmups, prompts, due_s.tolist())


async def _run(
    settings: ServeBenchSettings, api_key: str | None, load: OfferedLoad | None, watch: Watch | None
) -> ServeRun:
    pool = ConnectionPool(settings.base_url, settings.insecure)
    headers = ({"Authorization": f"Bearer {api_key}"} if api_key else {}) | settings.headers
    try:
        return await _measure(pool, settings, headers, load, watch)
    finally:
        # uvloop's loop.close() never returns while a connection is open.
        pool.close()


async def _measure(
    pool: ConnectionPool,
    settings: ServeBenchSettings,
    headers: dict[str, str],
    load: OfferedLoad | None,
    watch: Watch | None,
) -> ServeRun:
    try:
        await pool.resolve()
        served = await _first_model(pool, headers) if settings.model is None else None
    except (OSError, TimeoutError) as error:
        raise BenchError(f"cannot reach {settings.base_url}: {error or type(error).__name__}") from None
    model = served.id if served else settings.model or ""
    tokenizer_name = settings.tokenizer or (served.root if served else None) or model
    load = load or make_load(settings, load_tokenizer(tokenizer_name))
    warmup_s = await _warm_up(pool, settings, [_request(pool, settings, headers, model, p) for p in load.warmups])
    requests = [_request(pool, settings, headers, model, prompt) for prompt in load.prompts]
    most, timeout_s = settings.max_concurrency, settings.request_timeout_s
    gpu = GpuWatch(pool, headers)
    await gpu.begin()
    opened_before = pool.opened
    async with progress_bar("measuring", len(requests)) as advance, _watching(watch, pool, headers):
        with SelfWatch() as self_watch:
            streams = await offer(pool, requests, load.due_s, most, timeout_s, advance, _token_event(settings))
    opened = pool.opened - opened_before
    gpu_use = await gpu.end()
    outcomes = [judge(stream, len(prompt.ids)) for stream, prompt in zip(streams, load.prompts, strict=True)]
    client = self_watch.load(sum(len(stream.chunk_ns) for stream in streams))
    return ServeRun(model, tokenizer_name, load.prompts, outcomes, client, opened, warmup_s, gpu_use)


def _watching(
    watch: Watch | None, pool: ConnectionPool, headers: dict[str, str]
) -> contextlib.AbstractAsyncContextManager[object]:
    return contextlib.nullcontext() if watch is None else watch(pool, headers)


async def _first_model(pool: ConnectionPool, headers: dict[str, str]) -> _ServedModel:
    path = pool.url.path.rstrip("/") + "/v1/models"
    body = KeptBody(_MAX_MODELS_BYTES)
    async with asyncio.timeout(_MODELS_TIMEOUT_S):
        await pool.request(http_request("GET", path, pool.url.netloc, headers), body)
    if body.status == 503:
        raise BenchError(f"the server is not ready yet (HTTP 503 from {path})")
    if body.status != 200:
        raise BenchError(f"{path} answered HTTP {body.status}; name the model with --model")
    try:
        return msgspec.json.decode(body.content, type=_ServedModels).data[0]
    except (msgspec.MsgspecError, IndexError):
        raise BenchError(f"{path} lists no model; name one with --model") from None


def _request(
    pool: ConnectionPool, settings: ServeBenchSettings, headers: dict[str, str], model: str, prompt: Prompt
) -> bytes:
    path = pool.url.path.rstrip("/") + settings.endpoint
    return http_request("POST", path, pool.url.netloc, headers, completion_body(settings, model, prompt))


def _token_event(settings: ServeBenchSettings) -> re.Pattern[bytes]:
    return CHAT_TOKENS if settings.backend == "openai-chat" else COMPLETION_TOKENS


async def _warm_up(pool: ConnectionPool, settings: ServeBenchSettings, requests: Sequence[bytes]) -> float:
    """Seconds it took. Raises BenchError when a request fails: the measured ones would too, and more slowly."""
    if not requests:
        return 0.0
    before = time.perf_counter()
    due_s, most, timeout_s = [0.0] * len(requests), settings.max_concurrency, settings.request_timeout_s
    async with progress_bar("warming up with", len(requests)) as advance:
        streams = await offer(pool, requests, due_s, most, timeout_s, advance, _token_event(settings))
    errors = [error for stream in streams if (error := judge(stream, 0).error) is not None]
    if errors:
        raise BenchError(f"{len(errors)} of {len(requests)} warm-up requests failed; the first: {errors[0]}")
    return time.perf_counter() - before
