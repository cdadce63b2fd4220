"""What the engine's GPUs use, on /metrics: read from shared memory, where the workers write it. A figure that a rank
does not have has no line."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from albireo.shm.device_use import READ_FIGURES, Figure

STALE_NS = 10_000_000_000
"""A worker reads about twice a second, but not in the middle of a step: from this age on a reading says nothing of now.
Counters stand."""

_LABELS = ("model_name", "engine", "rank")
_SIMULATED_LABELS = (*_LABELS, "simulated")
"""Of ranks that are no GPU: a query that sums joules can leave them out."""


class GpuMetrics(Collector):
    """Of all ranks of one replica."""

    def __init__(self, labels: tuple[str, str], devices: npt.NDArray[Any], clock_ns: Callable[[], int]) -> None:
        """`labels`: the model's name and the replica. `devices`: DEVICE_USE[num_workers], in shared memory. `clock_ns`:
        CLOCK_MONOTONIC, which they are in."""
        self._labels = labels
        self._devices = devices
        self._clock_ns = clock_ns

    def collect(self) -> Iterator[Metric]:
        devices = self._devices.copy()
        age_ns = np.maximum(self._clock_ns() - devices["read_ns"], 0)
        used_mj = devices["energy_mj"] - devices["energy_start_mj"]

        def has(figures: Figure) -> npt.NDArray[np.bool_]:
            return np.asarray(devices["valid"] & int(figures) != 0)

        labels: tuple[str, ...] = _LABELS
        marks: tuple[str, ...] = ()
        if has(Figure.SIMULATED).any():
            labels, marks = _SIMULATED_LABELS, ("true",)
        is_fresh = age_ns <= STALE_NS
        energy = CounterMetricFamily(
            "albireo:energy_joules",
            "Energy of the whole GPU since the engine started, as its driver counts it.",
            labels=labels,
        )
        busy = CounterMetricFamily("albireo:gpu_busy_seconds", "Time that steps took on the GPU.", labels=labels)
        yield from self._filled(energy, has(Figure.ENERGY) & (used_mj >= 0), used_mj * 1e-3, marks)
        yield from self._filled(busy, has(Figure.BUSY), devices["busy_ns"] * 1e-9, marks)
        for name, text, is_shown, values in (
            (
                "gpu_utilization_perc",
                "Share of about the last second in which the GPU ran a kernel, as its driver says; 1 is all.",
                has(Figure.UTILIZATION) & is_fresh,
                devices["utilization_perc"] * 1e-2,
            ),
            (
                "gpu_memory_used_bytes",
                "Memory of the GPU in use, by all processes.",
                has(Figure.MEMORY) & is_fresh,
                devices["memory_used_bytes"],
            ),
            ("gpu_power_watts", "Power that the GPU draws.", has(Figure.POWER) & is_fresh, devices["power_mw"] * 1e-3),
            (
                "gpu_reading_age_seconds",
                "Time since the GPU's driver was asked for energy, utilisation, memory and power.",
                has(READ_FIGURES),
                age_ns * 1e-9,
            ),
        ):
            yield from self._filled(GaugeMetricFamily("albireo:" + name, text, labels=labels), is_shown, values, marks)

    def _filled(
        self,
        family: CounterMetricFamily | GaugeMetricFamily,
        is_shown: npt.NDArray[np.bool_],
        values: npt.NDArray[Any],
        marks: tuple[str, ...],
    ) -> Iterator[Metric]:
        """The family with the ranks that are shown; nothing when none is."""
        for rank in np.flatnonzero(is_shown).tolist():
            family.add_metric((*self._labels, str(rank), *marks), float(values[rank]))
        if family.samples:
            yield family
