"""What is measured, as records that are saved whole: each server's turn, each load that was offered in it."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from msgspec import Meta, Struct

from albireo.bench.medians import median_of
from albireo.tune.settings import Degree, TuneSettings
from albireo.tune.variants import AS_GIVEN

R = TypeVar("R")

FORMAT = 1
"""Of saved files: raised when a field changes its meaning."""


class LoadFigures(Struct, frozen=True):
    """One load on one server, of all its replicas. Requests and tokens per second; shares are 0 to 1."""

    load: str
    """Its label."""
    duration_s: float
    completed: int
    failed: int
    request_throughput: float
    output_throughput: float
    total_throughput: float
    """Prompt and output tokens."""
    goodput: float | None
    """Requests per second that met every target; None where there was none. So for the next."""
    good_share: float | None
    """Of the requests that were sent."""
    latencies_ms: dict[str, dict[str, float]]
    """ttft, tpot, itl, e2el -> mean, p50, p90, p99; without those that no request has."""
    busy_shares: dict[str, float]
    """By replica, or `replica/rank` where each device counts for itself: share of the run in which it worked on
    steps."""
    exposed_share: float | None
    """Of the time that devices had work in: they waited for the host. None without a step."""
    preemptions: int
    swapped_out_blocks: int
    swapped_in_blocks: int
    kv_usage_peak: float
    """Of the fullest replica, as far as it was looked at, four times a second."""
    steps: int
    cached_prompt_tokens: int
    joules_per_token: float | None
    """Energy of the run over its output tokens; None where nothing measures it."""

    @property
    def busy_share(self) -> float | None:
        """Mean over devices."""
        return sum(self.busy_shares.values()) / len(self.busy_shares) if self.busy_shares else None


class StepCost(Struct, frozen=True):
    """The decode steps of one replica at a fixed batch: medians over steps, in microseconds."""

    batch: int
    num_steps: int
    period_us: Annotated[float, Meta(gt=0)]
    """From the end of the step before to the end of this one."""
    device_us: float
    exposed_us: float
    """The device waited for the host though there was work."""
    collective_us: float | None
    """Of the device's time, what rank 0 spent exchanging, waiting for the slowest rank included; None where the
    flight record has no such part."""


class Turn(Struct, frozen=True):
    """One server's figures."""

    variant: str
    degree: Degree
    num_replicas: int
    round: int
    loads: list[LoadFigures]
    step: StepCost | None
    step_remark: str
    """Why `step` is None; empty otherwise."""
    kv_blocks: int
    """Of each replica."""
    block_size: int
    """Tokens in one."""
    remarks: tuple[str, ...]
    """What a reader must know before believing the figures."""

    @property
    def kv_tokens(self) -> int:
        """KV capacity of one replica."""
        return self.kv_blocks * self.block_size


class Refusal(Struct, frozen=True):
    """A degree that has no figures, or none from some round on, and why: the server did not start, served nothing, or
    ended while it was measured."""

    variant: str
    degree: Degree
    num_replicas: int
    reason: str


class TuneRecord(Struct, frozen=True):
    """Everything that one `tune` found out."""

    settings: TuneSettings
    command: str
    date: str
    """UTC, ISO 8601."""
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    turns: list[Turn]
    refusals: list[Refusal]
    is_complete: bool = True
    """False: it was interrupted, and these are the turns that had ended."""
    format: int = FORMAT

    @property
    def variants(self) -> tuple[str, ...]:
        """Those with figures, in the order in which they were measured."""
        return tuple(dict.fromkeys(turn.variant for turn in self.turns))

    def degrees(self, variant: str = AS_GIVEN) -> tuple[int, ...]:
        """Those with figures, ascending."""
        return tuple(sorted({turn.degree for turn in self.turns if turn.variant == variant}))

    def turns_of(self, degree: int, variant: str = AS_GIVEN) -> list[Turn]:
        return [turn for turn in self.turns if (turn.degree, turn.variant) == (degree, variant)]

    def load_figures(self, degree: int, load: str, variant: str = AS_GIVEN) -> list[LoadFigures]:
        """Of each round."""
        turns = self.turns_of(degree, variant)
        return [figures for turn in turns for figures in turn.loads if figures.load == load]

    def median_load(self, degree: int, load: str, variant: str = AS_GIVEN) -> LoadFigures | None:
        """The median of each figure over the rounds."""
        found = self.load_figures(degree, load, variant)
        return median_of(found) if found else None

    def median_step(self, degree: int, variant: str = AS_GIVEN) -> StepCost | None:
        found = [turn.step for turn in self.turns_of(degree, variant) if turn.step is not None]
        return median_of(found) if found else None


class Ranged(Struct, frozen=True):
    """A median over rounds, and the least and the most."""

    median: float
    low: float
    high: float
    count: int = 1
    """How many values there were."""


def ranged(values: Sequence[float]) -> Ranged:
    """Of at least one value."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return Ranged(median, ordered[0], ordered[-1], len(ordered))


def ranged_figure(records: Sequence[R], figure: Callable[[R], float | None]) -> Ranged | None:
    """None where some record lacks it, or there is no record."""
    values = [figure(record) for record in records]
    known = [value for value in values if value is not None and math.isfinite(value)]
    return ranged(known) if known and len(known) == len(values) else None
