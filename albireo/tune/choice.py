"""t_e, the empirically optimal degree: the best median, how far ahead it is, and whether the rounds bear that out."""

from collections.abc import Mapping

from msgspec import Struct

from albireo.tune.figures import LoadFigures, Ranged, TuneRecord, Turn, ranged_figure
from albireo.tune.settings import TRACE
from albireo.tune.variants import AS_GIVEN

CARRIED = 0.97
"""A degree has carried the load whose request rate reaches this share of what it would be if the last request, too,
took the median time: with a queue that grows it takes about twice as long."""


class Choice(Struct, frozen=True):
    """The degree with the best value, and the next one."""

    degree: int
    value: Ranged
    next_degree: int | None
    """None: there is no other."""
    next_value: Ranged | None

    @property
    def rounds(self) -> int:
        """That both have: fewer than were asked for, where the run was interrupted or a server did not start again."""
        return min(value.count for value in (self.value, self.next_value) if value is not None)

    @property
    def margin(self) -> float | None:
        """How much better than the next, as a share of the next's; None where there is none, or it has 0."""
        if self.next_value is None or self.next_value.median <= 0:
            return None
        return self.value.median / self.next_value.median - 1

    @property
    def overlaps(self) -> bool | None:
        """Whether the rounds' ranges touch; None where one of them is of one round, which has no range."""
        if self.next_value is None or self.rounds < 2:
            return None
        return self.value.low <= self.next_value.high

    @property
    def is_tie(self) -> bool:
        return self.next_value is not None and self.next_value.median == self.value.median


def objective_of(record: TuneRecord, figures: LoadFigures) -> float | None:
    """Good requests per second with an SLO, else output tokens per second."""
    return figures.goodput if record.settings.goodput else figures.output_throughput


def value_of(record: TuneRecord, degree: int, load: str | None, variant: str = AS_GIVEN) -> Ranged | None:
    """At one load; with None, each round's best over all loads: what a server of this degree can do at most."""
    if load is not None:
        return ranged_figure(record.load_figures(degree, load, variant), lambda each: objective_of(record, each))

    def best(turn: Turn) -> float | None:
        values = [objective_of(record, figures) for figures in turn.loads]
        return max((value for value in values if value is not None), default=None)

    return ranged_figure(record.turns_of(degree, variant), best)


def choose_of(record: TuneRecord, load: str | None = None, variant: str = AS_GIVEN) -> Choice | None:
    """t_e of a variant, at one load or over all of them; None where nothing was measured, or nothing met the SLO."""
    values = {degree: value_of(record, degree, load, variant) for degree in record.degrees(variant)}
    known = {degree: value for degree, value in values.items() if value is not None}
    return choose(known)


def choose(values: Mapping[int, Ranged]) -> Choice | None:
    """The best median; of equal ones the smallest degree, whose replicas are more: one that dies takes less with it."""
    ordered = sorted(values, key=lambda degree: (-values[degree].median, degree))
    if not ordered or values[ordered[0]].median <= 0:
        return None
    first, second = ordered[0], ordered[1] if len(ordered) > 1 else None
    return Choice(first, values[first], second, None if second is None else values[second])


def is_carried_by_all(record: TuneRecord, load: str, variant: str = AS_GIVEN) -> bool:
    """Whether every degree kept up with a finite rate: then throughput is what was offered, and tells nothing."""
    if load in (TRACE, "inf"):
        return False
    medians = [record.median_load(degree, load, variant) for degree in record.degrees(variant)]
    return all(m is not None and _carries(m, float(load), record.settings.num_prompts) for m in medians)


def _carries(figures: LoadFigures, rate: float, num_requests: int) -> bool:
    last_s = (num_requests - 1) / rate
    typical_s = figures.latencies_ms.get("e2el", {}).get("p50", 0.0) / 1e3
    return figures.request_throughput * (last_s + typical_s) >= CARRIED * num_requests
