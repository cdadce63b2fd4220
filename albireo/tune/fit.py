"""T(t) = scalable / t + non-scalable + communication(t), fitted to measured steps.

A ring's sum over t ranks sends 2 (t - 1) / t of the data, and takes steps whose number grows with t, as log2(t) does in
a tree (Thakur, Rabenseifner, Gropp 2005, "Optimization of Collective Communication Operations in MPICH", section 4). So
communication(t) = bandwidth (t - 1) / t + latency log2(t).

From the times of steps alone, `bandwidth` cannot be told: (t - 1) / t = 1 - 1 / t, so that it looks like more of the
non-scalable part and less of the scalable one, whatever was measured. Where the flight record says what the collectives
took, they are taken off first and fitted by themselves; where it does not, the bandwidth's share stays in the other
two, and only the latency is fitted, from three degrees on.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
from msgspec import Struct

MISS = 0.05
"""From this relative residual on the fit is said to miss."""
Floats = npt.NDArray[np.float64]


class StepModel(Struct, frozen=True):
    """Microseconds."""

    scalable_us: float
    non_scalable_us: float
    bandwidth_us: float
    latency_us: float
    num_parameters: int
    """That were free in the fit to the steps."""
    measured_us: dict[int, float]
    """By degree: what was fitted to."""
    collective_us: dict[int, float]
    """By degree: as recorded; empty where it was not recorded everywhere."""

    @property
    def has_recorded_communication(self) -> bool:
        """Then only the other two parts were fitted."""
        return bool(self.collective_us)

    @property
    def is_exact(self) -> bool:
        """As many parameters as points: it says nothing that the fit goes through them. It may miss all the same, since
        no part may be negative."""
        return self.num_parameters >= len(self.measured_us)

    def scalable(self, degree: int) -> float:
        return self.scalable_us / degree

    def communication(self, degree: int) -> float:
        """Recorded where it was, otherwise the model's."""
        recorded = self.collective_us.get(degree)
        return self.bandwidth_us * _ring(degree) + self.latency_us * math.log2(degree) if recorded is None else recorded

    def predict(self, degree: int) -> float:
        return self.scalable(degree) + self.non_scalable_us + self.communication(degree)

    def residual(self, degree: int) -> float:
        """Of the measured time: positive where the fit is too slow."""
        return self.predict(degree) / self.measured_us[degree] - 1

    @property
    def misses(self) -> dict[int, float]:
        """Residuals of the degrees at which it is off by more than MISS."""
        found = {degree: self.residual(degree) for degree in self.measured_us}
        return {degree: residual for degree, residual in found.items() if abs(residual) > MISS}


def fit_steps(period_us: Mapping[int, float], collective_us: Mapping[int, float | None]) -> StepModel | None:
    """Least squares of the relative misses, no part negative. `collective_us`: what was recorded, None where nothing
    was; a single rank exchanges nothing. None with fewer than two degrees: nothing can be told apart."""
    degrees = sorted(period_us)
    if len(degrees) < 2:
        return None
    recorded = {t: 0.0 if t == 1 else collective_us.get(t) for t in degrees}
    known = {t: value for t, value in recorded.items() if value is not None}
    has_all = len(known) == len(degrees)
    t, measured = np.array(degrees, np.float64), np.array([period_us[degree] for degree in degrees])
    exchanged = np.array([known[degree] for degree in degrees]) if has_all else np.zeros_like(t)
    columns = [1 / t, np.ones_like(t)]
    if not has_all and len(degrees) > len(columns):
        columns.append(np.log2(t))
    solution = nnls(np.stack(columns, 1) / measured[:, None], (measured - exchanged) / measured)
    scalable_us, non_scalable_us, *latency = solution.tolist()
    communication = _fit_communication(degrees, exchanged) if has_all else (0.0, sum(latency))
    return StepModel(
        scalable_us=scalable_us,
        non_scalable_us=non_scalable_us,
        bandwidth_us=communication[0],
        latency_us=communication[1],
        num_parameters=len(columns),
        measured_us={degree: period_us[degree] for degree in degrees},
        collective_us=known if has_all else {},
    )


def nnls(columns: Floats, target: Floats) -> Floats:
    """x >= 0 [n] with the least |columns x - target|, for columns [m, n] of few n: the best of the unconstrained
    solutions on every subset of the columns, one of which it is (Lawson and Hanson 1974, chapter 23)."""
    num_columns = columns.shape[1]
    best, least = np.zeros(num_columns), float(target @ target)
    for size in range(1, num_columns + 1):
        for subset in combinations(range(num_columns), size):
            part, *_ = np.linalg.lstsq(columns[:, subset], target, rcond=None)
            miss = columns[:, subset] @ part - target
            if (part >= 0).all() and float(miss @ miss) < least - 1e-15:
                best, least = np.zeros(num_columns), float(miss @ miss)
                best[list(subset)] = part
    return best


def _fit_communication(degrees: Sequence[int], exchanged_us: Floats) -> tuple[float, float]:
    """(bandwidth, latency) of the recorded collectives; with one degree of several ranks, all of it is latency."""
    several = np.array(degrees) > 1
    t, times = np.array(degrees, np.float64)[several], exchanged_us[several]
    if not times.any():
        return 0.0, 0.0
    columns = [np.log2(t)] if len(t) == 1 else [np.log2(t), (t - 1) / t]
    latency, *bandwidth = nnls(np.stack(columns, 1), times).tolist()
    return (bandwidth[0] if bandwidth else 0.0), latency


def _ring(degree: int) -> float:
    """Share of the data that each rank of a ring sends, of twice the data."""
    return (degree - 1) / degree
