"""Interval arithmetic on stretches of time: what overlaps what, and for how long. Pure functions on arrays."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]
"""Nanoseconds of CLOCK_MONOTONIC, or their differences."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """Half-open stretches of time [begin, end), ascending and disjoint; `union` makes them. Both int64 [n]."""

    begin_ns: Times
    end_ns: Times

    @property
    def total_ns(self) -> int:
        return int((self.end_ns - self.begin_ns).sum())


def union(begin_ns: Times, end_ns: Times) -> Intervals:
    """The time that lies in any of n stretches, given in any order; those that overlap or touch become one, and those
    that do not last are nothing."""
    order = np.argsort(begin_ns, kind="stable")
    begin_ns, end_ns = begin_ns[order], end_ns[order]
    lasts = end_ns > begin_ns
    begin_ns, end_ns = begin_ns[lasts], end_ns[lasts]
    if not begin_ns.size:
        return Intervals(begin_ns, end_ns)
    reach_ns = np.maximum.accumulate(end_ns)
    starts = np.flatnonzero(np.concatenate(([True], begin_ns[1:] > reach_ns[:-1])))
    ends = np.concatenate((starts[1:], [begin_ns.size])) - 1
    return Intervals(begin_ns[starts], reach_ns[ends])


def covered_ns(begin_ns: Times, end_ns: Times, within: Intervals) -> Times:
    """How much of each of n stretches lies in `within`: int64 [n]. The stretches may overlap each other."""
    return _before_ns(end_ns, within) - _before_ns(begin_ns, within)


def _before_ns(at_ns: Times, within: Intervals) -> Times:
    """How much of `within` lies before each of these moments."""
    if not within.begin_ns.size:
        return np.zeros_like(at_ns)
    sums = np.concatenate(([0], np.cumsum(within.end_ns - within.begin_ns)))
    begun = np.searchsorted(within.begin_ns, at_ns, side="right")
    last = np.maximum(begun - 1, 0)
    still_to_come = np.maximum(within.end_ns[last] - at_ns, 0)
    return np.where(begun > 0, sums[begun] - still_to_come, 0)
