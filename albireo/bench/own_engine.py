"""An engine of the benchmark's own, started as a server on this machine and asked over HTTP: its load, and waves of
requests, all sent at once. Behind `bench latency`, `bench throughput` and `bench breakdown`."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from msgspec.structs import replace

from albireo.bench.connection import ConnectionPool
from albireo.bench.http_requests import completion_body, http_request
from albireo.bench.load import offer
from albireo.bench.outcome import RequestOutcome, judge
from albireo.bench.progress import progress_bar
from albireo.bench.prompts import Prompt
from albireo.bench.settings import ServeBenchSettings
from albireo.engine_file import EngineInfo
from albireo.engine_process import EngineProcess
from albireo.serve_flags import server_api_key

REQUEST_TIMEOUT_S = 3600.0


class WaveError(Exception):
    """A request failed, so that there is no result; the text is one line."""


def load_settings(model: str, num_prompts: int, input_len: int, output_len: int | None) -> ServeBenchSettings:
    """All at once, as long as they should be, as the server samples by default; for no server yet (`addressed`)."""
    return ServeBenchSettings(
        base_url="http://127.0.0.1",
        endpoint="/v1/completions",
        model=None,
        tokenizer=model,
        prompt_format="ids",
        input_len=input_len,
        prefix_len=0,
        output_len=output_len,
        num_prompts=num_prompts,
        num_warmups=0,
        request_rate=float("inf"),
        burstiness=1.0,
        max_concurrency=None,
        ignore_eos=True,
        temperature=None,
        top_p=None,
        top_k=None,
        min_p=None,
        extra_body={},
        headers={},
        seed=0,
        percentile_metrics=(),
        metric_percentiles=(),
        goodput={},
        request_timeout_s=REQUEST_TIMEOUT_S,
        insecure=False,
        label=None,
        metadata={},
    )


def addressed(settings: ServeBenchSettings, engine: EngineInfo, serve_flags: Sequence[str]) -> ServeBenchSettings:
    """The same for this engine, which these flags have started: over TCP or a Unix socket, with a key of its own, and
    whatever its certificate says: it was given that a moment ago, on this machine."""
    key = server_api_key(serve_flags)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return replace(settings, base_url=engine.url, model=engine.model_name, headers=headers, insecure=True)


@contextmanager
def own_engine(model: str, serve_flags: Sequence[str]) -> Iterator[EngineInfo]:
    """Without a prefix cache, as in vLLM: the same prompts again would measure little but that. Raises
    EngineProcessError."""
    arguments = [model, "--no-enable-prefix-caching", "--disable-uvicorn-access-log", *serve_flags]
    with EngineProcess(arguments, shows_start=True) as engine:
        yield engine


class Waves:
    """Sends the same prompts to one engine again and again, on connections that stay open."""

    def __init__(self, pool: ConnectionPool, settings: ServeBenchSettings, prompts: Sequence[Prompt]) -> None:
        """`settings`: addressed."""
        self._pool = pool
        self._settings = settings
        self._prompts = prompts
        model, host = settings.model or "", pool.url.netloc
        bodies = [completion_body(settings, model, prompt) for prompt in prompts]
        self._requests = [http_request("POST", settings.endpoint, host, settings.headers, body) for body in bodies]

    async def send(self, title: str | None = None) -> list[RequestOutcome]:
        """One wave, with a bar where it has a title. Raises WaveError when a request fails."""
        due_s = [0.0] * len(self._requests)
        limit = self._settings.max_concurrency
        if title is None:
            streams = await offer(self._pool, self._requests, due_s, limit, REQUEST_TIMEOUT_S)
        else:
            async with progress_bar(title, len(self._requests)) as advance:
                streams = await offer(self._pool, self._requests, due_s, limit, REQUEST_TIMEOUT_S, advance)
        outcomes = [judge(stream, len(p.ids)) for stream, p in zip(streams, self._prompts, strict=True)]
        errors = [outcome.error for outcome in outcomes if outcome.error is not None]
        if errors:
            raise WaveError(f"{len(errors)} of {len(outcomes)} requests failed; the first: {errors[0]}")
        return outcomes


@asynccontextmanager
async def waves(settings: ServeBenchSettings, prompts: Sequence[Prompt]) -> AsyncIterator[Waves]:
    """Waves to the engine that the settings are addressed to; its connections are closed at the end."""
    pool = ConnectionPool(settings.base_url, settings.insecure)
    try:
        yield Waves(pool, settings, prompts)
    finally:
        pool.close()  # uvloop's loop.close() never returns while a connection is open
        await asyncio.sleep(0)


def duration_s(outcomes: Sequence[RequestOutcome]) -> float:
    """From the first request to the last answer's end."""
    return (max(o.end_ns for o in outcomes) - min(o.start_ns for o in outcomes)) / 1e9
