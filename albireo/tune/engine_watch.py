"""What the server says of itself in a run: /metrics before, after and four times a second, added up over replicas."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

from albireo.bench.connection import ConnectionPool, KeptBody
from albireo.bench.http_requests import http_request

_PREFIX = "albireo:"
DEVICE, EXPOSED = "step_device_seconds_total", "step_exposed_seconds_total"
STEPS, PREEMPTIONS = "engine_steps_total", "num_preemptions_total"
SWAPPED_OUT, SWAPPED_IN = "swapped_out_blocks_total", "swapped_in_blocks_total"
GPU_BUSY = "gpu_busy_seconds_total"
COUNTERS = (DEVICE, EXPOSED, STEPS, PREEMPTIONS, SWAPPED_OUT, SWAPPED_IN, GPU_BUSY)
KV_USAGE, KV_BLOCKS, CACHE_CONFIG = "kv_cache_usage_perc", "kv_cache_blocks", "cache_config_info"
_NAMES = tuple(_PREFIX + name for name in (*COUNTERS, KV_USAGE, KV_BLOCKS, CACHE_CONFIG))

_POLL_S = 0.25
_TIMEOUT_S = 10.0
_MAX_BYTES = 32 * 1024 * 1024


class EngineScrape(Struct, frozen=True):
    """One answer. Values by name, then by replica (`0`), or by `replica/rank` where a rank has its own."""

    asked_s: float
    values: dict[str, dict[str, float]]
    block_size: int

    def of(self, name: str) -> dict[str, float]:
        return self.values.get(name, {})


class EngineUse(Struct, frozen=True):
    """Of a run."""

    wall_s: float
    grown: dict[str, dict[str, float]]
    """Counters, by name and replica or rank."""
    kv_usage_peak: float
    kv_blocks: int
    """Of the smallest replica."""
    block_size: int

    def total(self, name: str) -> float:
        return sum(self.grown.get(name, {}).values())

    @property
    def busy_shares(self) -> dict[str, float]:
        """By `replica/rank` where ranks count for themselves, else by replica: then it is rank 0's time, in which the
        others work too."""
        busy_s = self.grown.get(GPU_BUSY) or self.grown.get(DEVICE, {})
        return {name: value / self.wall_s for name, value in busy_s.items()} if self.wall_s > 0 else {}

    @property
    def exposed_share(self) -> float | None:
        exposed_s, device_s = self.total(EXPOSED), self.total(DEVICE)
        return exposed_s / (exposed_s + device_s) if exposed_s + device_s > 0 else None


class EngineWatch:
    """`async with` around a run, on its event loop. A server that says nothing leaves `use` None."""

    def __init__(self, pool: ConnectionPool, headers: dict[str, str]) -> None:
        self._pool = pool
        self._request = http_request("GET", pool.url.path.rstrip("/") + "/metrics", pool.url.netloc, headers)
        self._scrapes: list[EngineScrape] = []
        self._polling: asyncio.Task[None] | None = None
        self.use: EngineUse | None = None

    async def __aenter__(self) -> Self:
        await self._scrape()
        self._polling = asyncio.create_task(self._poll())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._polling is not None
        self._polling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._polling
        if error is None:
            await self._scrape()
            self.use = engine_use(self._scrapes)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            await self._scrape()

    async def _scrape(self) -> None:
        body = KeptBody(_MAX_BYTES)
        asked_s = time.perf_counter()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._pool.request(self._request, body)
        except OSError:  # TimeoutError is one
            return
        if body.status == 200:
            self._scrapes.append(parse(body.content.decode("utf-8", "replace"), asked_s))


def parse(text: str, asked_s: float) -> EngineScrape:
    lines = [line for line in text.splitlines() if line.startswith(_NAMES)]
    values: dict[str, dict[str, float]] = {}
    block_size = 0
    for family in text_string_to_metric_families("\n".join([*lines, ""])):
        for sample in family.samples:
            replica, rank = sample.labels.get("engine", "0"), sample.labels.get("rank")
            name = sample.name.removeprefix(_PREFIX)
            if name == CACHE_CONFIG:
                block_size = int(sample.labels.get("block_size", "0"))
            values.setdefault(name, {})[replica if rank is None else f"{replica}/{rank}"] = float(sample.value)
    return EngineScrape(asked_s, values, block_size)


def engine_use(scrapes: list[EngineScrape]) -> EngineUse | None:
    """From the first to the last; None where there are no two."""
    if len(scrapes) < 2:
        return None
    first, last = scrapes[0], scrapes[-1]
    peak: Callable[[EngineScrape], float] = lambda scrape: max(scrape.of(KV_USAGE).values(), default=0.0)  # noqa: E731
    return EngineUse(
        wall_s=last.asked_s - first.asked_s,
        grown={name: _grown(first.of(name), last.of(name)) for name in COUNTERS if last.of(name)},
        kv_usage_peak=max(map(peak, scrapes)),
        kv_blocks=int(min(last.of(KV_BLOCKS).values(), default=0)),
        block_size=last.block_size,
    )


def _grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """A counter that began anew, since its process died, counts from there."""
    return {name: value - before.get(name, 0.0) if value >= before.get(name, 0.0) else value
            for name, value in after.items()}  # fmt: skip
