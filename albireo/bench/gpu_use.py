"""What the server's GPUs used in a run, from its own /metrics before and after. Most servers say nothing of it, and
then there is nothing: no figure is ever guessed.

Energy is known for the times at which the server read its GPUs, about twice a second. So both ends wait for a reading:
what is told holds the whole run, and at each end up to about a second in which the GPUs were idle.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

from albireo.bench.connection import ConnectionPool, KeptBody
from albireo.bench.http_requests import http_request
from albireo.bench.metrics import RunMetrics

_ENERGY, _BUSY, _AGE = (
    "albireo:energy_joules_total",
    "albireo:gpu_busy_seconds_total",
    "albireo:gpu_reading_age_seconds",
)
_TIMEOUT_S = 5.0
_FRESH_TIMEOUT_S = 3.0
"""How long each end waits for a reading."""
_POLL_S = 0.05
_MAX_METRICS_BYTES = 8 * 1024 * 1024


class GpuUse(Struct, frozen=True, omit_defaults=True):
    """Of all the engine's GPUs in a run; None where the server does not say, or not of every GPU."""

    num_gpus: int
    energy_j: float | None
    """Over `energy_s`, which holds the run."""
    energy_s: float | None
    busy_share: float | None
    """Mean over the GPUs of the share of the run in which they worked on steps."""
    is_simulated: bool = False
    """The figures are those of simulated devices."""


class Scrape(Struct, frozen=True):
    """One answer of /metrics: values by rank; by `replica/rank` from the second replica on."""

    asked_s: float
    """When, time.perf_counter."""
    energy_j: dict[str, float]
    busy_s: dict[str, float]
    age_s: dict[str, float]
    is_simulated: bool = False

    @property
    def ranks(self) -> set[str]:
        return {*self.energy_j, *self.busy_s}

    @property
    def has_energy(self) -> bool:
        """Of every rank."""
        return bool(self.energy_j) and self.energy_j.keys() == self.ranks == self.age_s.keys()

    def is_newer_than(self, time_s: float) -> bool:
        """Every GPU was read after that."""
        return all(self.asked_s - age_s >= time_s for age_s in self.age_s.values())


class GpuWatch:
    """`begin` before a run and `end` after it, on its event loop; neither raises for what a server does."""

    def __init__(self, pool: ConnectionPool, headers: dict[str, str]) -> None:
        self._pool = pool
        self._request = http_request("GET", pool.url.path.rstrip("/") + "/metrics", pool.url.netloc, headers)
        self._before: Scrape | None = None

    async def begin(self) -> None:
        """Comes back with the reading from which energy is counted, at once where there is none."""
        scrape = await self._scrape()
        self._before = None if scrape is None else await self._fresh(scrape)

    async def end(self) -> GpuUse | None:
        """None when the server says nothing of GPUs."""
        at_end = None if self._before is None else await self._scrape()
        if self._before is None or at_end is None:
            return None
        return gpu_use(self._before, at_end, await self._fresh(at_end))

    async def _fresh(self, scrape: Scrape) -> Scrape:
        """The first one with readings from after `scrape`; one without energy when they do not come."""
        newest, deadline_s = scrape, scrape.asked_s + _FRESH_TIMEOUT_S
        while newest.has_energy and not newest.is_newer_than(scrape.asked_s):
            if time.perf_counter() > deadline_s:
                return msgspec.structs.replace(newest, energy_j={})
            await asyncio.sleep(_POLL_S)
            newest = await self._scrape() or newest
        return newest

    async def _scrape(self) -> Scrape | None:
        body = KeptBody(_MAX_METRICS_BYTES)
        asked_s = time.perf_counter()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._pool.request(self._request, body)
        except OSError:  # TimeoutError is one
            return None
        return parse(body.content.decode("utf-8", "replace"), asked_s) if body.status == 200 else None


def parse(text: str, asked_s: float) -> Scrape | None:
    """None when there is nothing of GPUs in it."""
    is_simulated = False
    values: dict[str, dict[str, float]] = {_ENERGY: {}, _BUSY: {}, _AGE: {}}
    lines = [line for line in text.splitlines() if line.startswith(tuple(values))]
    try:
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            for sample in family.samples:
                if sample.name in values:
                    values[sample.name][_rank(sample.labels)] = float(sample.value)
                    is_simulated |= sample.labels.get("simulated") == "true"
    except (ValueError, KeyError):
        return None
    scrape = Scrape(asked_s, values[_ENERGY], values[_BUSY], values[_AGE], is_simulated)
    return scrape if scrape.ranks else None


def _rank(labels: Mapping[str, str]) -> str:
    """Each replica has a rank 0."""
    replica = labels.get("engine", "0")
    return labels["rank"] if replica == "0" else f"{replica}/{labels['rank']}"


def gpu_use(before: Scrape, at_end: Scrape, after: Scrape) -> GpuUse | None:
    """`at_end`: right after the run. `after`: the first one with later readings. None where nothing can be told."""
    energy_j = energy_s = busy_share = None
    if before.has_energy and after.has_energy and before.ranks == after.ranks:
        energy_j = _grown(before, after, lambda scrape: scrape.energy_j)
        read_s = [scrape.asked_s - sum(scrape.age_s.values()) / len(scrape.age_s) for scrape in (before, after)]
        energy_s = None if energy_j is None else read_s[1] - read_s[0]
    if before.busy_s and before.busy_s.keys() == before.ranks == at_end.busy_s.keys():
        busy_s = _grown(before, at_end, lambda scrape: scrape.busy_s)
        wall_s = at_end.asked_s - before.asked_s
        busy_share = None if busy_s is None or wall_s <= 0 else busy_s / len(before.ranks) / wall_s
    if energy_j is None and busy_share is None:
        return None
    return GpuUse(len(before.ranks), energy_j, energy_s, busy_share, before.is_simulated)


def joules_per_output_token(gpu: GpuUse | None, metrics: RunMetrics) -> float | None:
    """Energy of the whole run, prompts included, over the tokens that it brought; None where either is not known."""
    if gpu is None or gpu.energy_j is None or not metrics.total_output_tokens:
        return None
    return gpu.energy_j / metrics.total_output_tokens


def _grown(before: Scrape, after: Scrape, counters: Callable[[Scrape], dict[str, float]]) -> float | None:
    """Sum over the ranks; None when a counter has begun anew."""
    old, new = counters(before), counters(after)
    growth = [new[rank] - old[rank] for rank in old]
    return sum(growth) if min(growth) >= 0 else None
