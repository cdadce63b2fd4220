"""What of a step is hidden behind the device's work and what is exposed; how far t ranks can divide it.

A step's *period* goes from the end of the device's work on the step before to the end of its work on this one. It is
the gap, in which the device waited though there was work, and the device's work. What a process did meanwhile was
*hidden* as far as it lies in the device's work, and *exposed* as far as it lies in the gap. Several processes may be
busy in one gap, so exposed times add up to more than it; what nobody was busy in is waking up and waiting.

Amdahl's law: if the share s of a step of one rank does not shrink with t ranks, they are 1 / (s + (1 - s) / t) times
as fast at most. Counted as s is what the records show of it: the gap, and rank 0's time in collectives, which are there
with t > 1 only and include waiting for the slowest rank: where ranks share cores, that is most of it. From t ranks s is
derived by taking the rest of the step t times. Not counted, since records do not tell it apart, is what every rank
repeats within FORWARD: norms, the rope, the launch of each operation; measured on one rank the true s is higher. With
`gathered` sampling every rank repeats SAMPLE too; that figure stands beside it.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from albireo.shm.flight import FlightLog, Part
from albireo.trace.intervals import Intervals, Times, covered_ns, union
from albireo.trace.steps import Steps, records_of

ACCOUNTS = (Part.EXPOSED, Part.IDLE)
"""Not what a process did but what the coordinator says of the device."""
RANKS = (2, 4, 8)
"""Degrees of tensor parallelism that a bound is given for."""


class PartTime(Struct, frozen=True):
    """One part of one process. Means over the steps, in microseconds, but for the last two."""

    process: str
    part: str
    per_step_us: float
    hidden_us: float
    exposed_us: float
    share: float
    """Of the step's period; 1 is all of it."""
    p50_us: float
    """Of a single record: a step may have several."""
    p99_us: float


class Spread(Struct, frozen=True):
    """A quantity per step, in microseconds."""

    mean_us: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float


class NonScalable(Struct, frozen=True):
    """What does not shrink with the number of ranks."""

    fraction: float
    """Of a step of one rank: the gap and collectives."""
    fraction_sampling_repeated: float
    """With SAMPLE counted too, as under `gathered` sampling."""
    speed_up_bounds: dict[int, float]
    """By number of ranks: the most that `fraction` allows."""


class Overlap(Struct, frozen=True):
    """The account of some steps."""

    num_steps: int
    num_ranks: int
    period: Spread
    device: Spread
    gap: Spread
    gap_share: float
    """Of all periods; 1 is all of them."""
    nobody_us: float
    """Of the mean gap: no process was busy; waking up and waiting."""
    non_scalable: NonScalable
    parts: list[PartTime]


def measure(logs: Sequence[FlightLog], steps: Steps) -> Overlap:
    """The account of `timed` steps. Raises ValueError where there are none."""
    if not len(steps):
        raise ValueError("no step whose period is known")
    period_ns, gaps = steps.period_ns, steps.gaps
    busy = union(*_joined([_work(log.records, inside=gaps) for log in logs]))
    nobody_ns = gaps.total_ns - int(covered_ns(gaps.begin_ns, gaps.end_ns, busy).sum())
    num_ranks = sum(log.name.startswith("worker-") for log in logs)
    return Overlap(
        num_steps=len(steps),
        num_ranks=num_ranks,
        period=spread(period_ns),
        device=spread(steps.end_ns - steps.begin_ns),
        gap=spread(steps.gap_ns),
        gap_share=gaps.total_ns / int(period_ns.sum()),
        nobody_us=nobody_ns / len(steps) / 1e3,
        non_scalable=_non_scalable(logs, steps, num_ranks),
        parts=[part for log in logs for part in _part_times(log, steps)],
    )


def spread(values_ns: Times) -> Spread:
    """Of at least one value."""
    p50, p99, p999 = np.percentile(values_ns, [50, 99, 99.9]) / 1e3
    return Spread(float(values_ns.mean()) / 1e3, float(p50), float(p99), float(p999), float(values_ns.max()) / 1e3)


def amdahl_bound(fraction: float, num_ranks: int) -> float:
    """The most that `num_ranks` ranks are faster than one when this fraction of its time does not shrink."""
    return 1 / (fraction + (1 - fraction) / num_ranks)


def one_rank_fraction(fixed_ns: float, period_ns: float, num_ranks: int) -> float:
    """The share of `fixed_ns` in a step of one rank, from a step of `num_ranks`, whose rest it does alone."""
    return fixed_ns / (fixed_ns + num_ranks * (period_ns - fixed_ns))


def _part_times(log: FlightLog, steps: Steps) -> list[PartTime]:
    device, gaps, period_ns = steps.device, steps.gaps, int(steps.period_ns.sum())
    found = []
    for part in Part:
        records = log.records[log.records["part"] == part]
        begin_ns, end_ns = records["begin_ns"], records["end_ns"]
        hidden_ns, exposed_ns = covered_ns(begin_ns, end_ns, device), covered_ns(begin_ns, end_ns, gaps)
        inside = hidden_ns + exposed_ns > 0
        if part in ACCOUNTS or not inside.any():
            continue
        hidden_us, exposed_us = (float(time_ns.sum()) / len(steps) / 1e3 for time_ns in (hidden_ns, exposed_ns))
        p50, p99 = np.percentile((end_ns - begin_ns)[inside], [50, 99]) / 1e3
        per_step_us = hidden_us + exposed_us
        share = per_step_us * 1e3 * len(steps) / period_ns
        found.append(PartTime(log.name, part.name, per_step_us, hidden_us, exposed_us, share, float(p50), float(p99)))
    return found


def _non_scalable(logs: Sequence[FlightLog], steps: Steps, num_ranks: int) -> NonScalable:
    device, period_ns = steps.device, float(steps.period_ns.sum())
    collective = union(*_bounds(records_of(logs, "worker-0", Part.COLLECTIVE)))
    sample = records_of(logs, "worker-0", Part.SAMPLE)
    fixed_ns = steps.gaps.total_ns + int(covered_ns(device.begin_ns, device.end_ns, collective).sum())
    repeated = union(*_joined([_bounds(sample), (collective.begin_ns, collective.end_ns)]))
    repeated_ns = steps.gaps.total_ns + int(covered_ns(device.begin_ns, device.end_ns, repeated).sum())
    fraction = one_rank_fraction(fixed_ns, period_ns, num_ranks)
    return NonScalable(
        fraction,
        one_rank_fraction(repeated_ns, period_ns, num_ranks),
        {ranks: amdahl_bound(fraction, ranks) for ranks in RANKS},
    )


def _work(records: npt.NDArray[np.void], inside: Intervals) -> tuple[Times, Times]:
    """What a process did, as far as it touches `inside`: another rank's device work, too."""
    begin_ns, end_ns = _bounds(records[~np.isin(records["part"], ACCOUNTS)])
    touches = covered_ns(begin_ns, end_ns, inside) > 0
    return begin_ns[touches], end_ns[touches]


def _bounds(records: npt.NDArray[np.void]) -> tuple[Times, Times]:
    return records["begin_ns"], records["end_ns"]


def _joined(pairs: Sequence[tuple[Times, Times]]) -> tuple[Times, Times]:
    return np.concatenate([begin for begin, _ in pairs]), np.concatenate([end for _, end in pairs])
