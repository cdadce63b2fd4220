"""From measured step times to a spec's achievable rates and fixed times.

The roofline is piecewise linear in what is looked for: a pattern search over the logarithms finds a valley, without
derivatives and without another package, and the deepest of some twenty is taken.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from albireo.checkpoint.structs import ModelConfig
from albireo.config import Dtype, SamplingMode
from albireo.sim.roofline import Roofline, StepWork
from albireo.sim.spec import DeviceSpec

FIRST_FACTOR: Final = 2.0
LAST_FACTOR: Final = 1.004
MAX_TURNS: Final = 100
NUM_STARTS: Final = 20
LEAST_SHARE: Final = 0.001
"""Of a peak rate: what the spec allows."""


class Measured(NamedTuple):
    """A kind of step, and what it takes."""

    num_ranks: int
    batch: int
    context: int
    seconds: float

    @property
    def work(self) -> StepWork:
        return StepWork.decode(self.batch, self.context)


class Rates(NamedTuple):
    """What is looked for; of the shares, those of the spec's peak rates."""

    flops: float
    bandwidth: float
    attention_flops: float
    attention_bandwidth: float
    step_s: float
    bytes_per_logit: float
    link_latency_s: float
    link: float
    contention: float

    def spec(self, peaks: DeviceSpec) -> DeviceSpec:
        """`peaks` with these. A share above 1 says that more was had than its peak: the caller's to mend."""
        efficiency = replace(
            peaks.efficiency, flops=self.flops, bandwidth=self.bandwidth, attention_flops=self.attention_flops,
            attention_bandwidth=self.attention_bandwidth, link=self.link,
        )  # fmt: skip
        return replace(
            peaks,
            efficiency=efficiency,
            link=replace(peaks.link, latency_s=self.link_latency_s),
            overhead=replace(peaks.overhead, step_s=self.step_s),
            sampling=replace(peaks.sampling, bytes_per_logit=self.bytes_per_logit),
            contention=self.contention,
        )


_START: Final = Rates(0.5, 0.5, 0.2, 0.5, 1e-4, 16.0, 1e-5, 0.5, 0.1)
_SHARE: Final = (LEAST_SHARE, 1.0)
_BOUNDS: Final = (_SHARE, _SHARE, _SHARE, _SHARE, (1e-7, 0.5), (0.01, 5_000.0), (1e-8, 0.1), _SHARE, (1e-4, 10.0))
"""Of Rates' fields."""
_OF_SEVERAL_RANKS: Final = ("link_latency_s", "link", "contention")


def fit_spec(
    peaks: DeviceSpec, model: ModelConfig, dtype: Dtype, mode: SamplingMode, points: Sequence[Measured]
) -> DeviceSpec:
    """`peaks` with the efficiencies and fixed times under which the roofline is nearest to `points`: the mean square of
    the errors' logarithms is least, so that short steps count as much as long ones."""

    def loss(rates: Rates) -> float:
        errors = predict(rates.spec(peaks), model, dtype, mode, points)
        return sum(
            math.log(predicted / point.seconds) ** 2 for predicted, point in zip(errors, points, strict=True)
        ) / len(points)

    names = [name for name in Rates._fields if _is_seen(name, points)]
    starts = [_START, *(_elsewhere(random.Random(seed)) for seed in range(NUM_STARTS - 1))]
    return min((_search(loss, start, names) for start in starts), key=loss).spec(peaks)


def predict(
    spec: DeviceSpec, model: ModelConfig, dtype: Dtype, mode: SamplingMode, points: Sequence[Measured]
) -> list[float]:
    """Seconds of each."""
    rooflines = {
        size: Roofline(model, size, dtype, spec, mode, is_eager=False) for size in {point.num_ranks for point in points}
    }
    return [rooflines[point.num_ranks].step(point.work).total for point in points]


def _elsewhere(rng: random.Random) -> Rates:
    """A start within two powers of ten of the usual one, and within bounds."""
    values = [value * 10 ** rng.uniform(-2, 2) for value in _START]
    return Rates(*(min(max(value, low), high) for value, (low, high) in zip(values, _BOUNDS, strict=True)))


def _is_seen(name: str, points: Sequence[Measured]) -> bool:
    return name not in _OF_SEVERAL_RANKS or any(point.num_ranks > 1 for point in points)


def _search(loss: Callable[[Rates], float], rates: Rates, names: Sequence[str]) -> Rates:
    """Each of `names` in turn is multiplied or divided by a factor while that helps; then the factor is made less."""
    least, factor = loss(rates), FIRST_FACTOR
    for _ in range(MAX_TURNS):
        if factor <= LAST_FACTOR:
            break
        has_moved = False
        for name in names:
            low, high = _BOUNDS[Rates._fields.index(name)]
            for step in (factor, 1 / factor):
                while True:
                    value = min(max(getattr(rates, name) * step, low), high)
                    moved = rates._replace(**{name: value})
                    found = loss(moved) if moved != rates else least
                    if found >= least:
                        break
                    rates, least, has_moved = moved, found, True
        if not has_moved:
            factor = math.sqrt(factor)
    return rates
