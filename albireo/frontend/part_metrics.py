"""How long each part of a step takes, on /metrics: the histograms that every process keeps in shared memory.

Nothing is observed here: the flight recorders count, and their totals are read when /metrics is asked for.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from albireo.shm.flight import BOUNDS_NS, FlightReader, Part

_BOUNDS = (*(str(bound_ns / 1e9) for bound_ns in BOUNDS_NS), "+Inf")


class PartMetrics(Collector):
    """Of all processes of one replica; the first one has the frontends too."""

    def __init__(self, labels: tuple[str, str], flight_fds: Iterable[int]) -> None:
        """`labels`: the model's name and the replica. `flight_fds`: every process's flight segment. Raises SegmentError
        when one is something else."""
        self._labels = labels
        self._readers = [FlightReader(fd) for fd in flight_fds]

    def collect(self) -> Iterator[Metric]:
        parts = HistogramMetricFamily(
            "albireo:step_part_seconds",
            "What a process spent on one part of a step.",
            labels=("model_name", "engine", "process", "part"),
        )
        gaps = HistogramMetricFamily(
            "albireo:step_gap_seconds",
            "Between two steps: the device waited though there was work.",
            labels=("model_name", "engine"),
        )
        for reader in self._readers:
            totals = reader.totals()
            for part in Part:
                counts = totals["buckets"][part]
                if part == Part.IDLE or not counts.any():
                    continue  # without a request there is no step
                sum_s = float(totals["sum_ns"][part]) / 1e9
                if part == Part.EXPOSED:
                    gaps.add_metric(self._labels, _cumulative(counts), sum_s)
                else:
                    parts.add_metric((*self._labels, reader.name, part.name.lower()), _cumulative(counts), sum_s)
        yield parts
        yield gaps


def _cumulative(counts: npt.NDArray[Any]) -> Sequence[tuple[str, float]]:
    """(upper end, how many took at most that), as prometheus_client exports it."""
    return list(zip(_BOUNDS, np.cumsum(counts, dtype=np.float64).tolist(), strict=True))
