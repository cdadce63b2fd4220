"""`GET /metrics`: vLLM's metrics under `albireo:`, so that a dashboard ports by prefix.

Nothing is observed here: the engine's gauges and counters, and what all frontends count, are read from shared memory
when asked for.
"""

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from albireo.frontend.request_metrics import LABELS, RequestMetrics

_PREFIX = "albireo:"


class MetricsCollector(Collector):
    """Everything that /metrics shows, gathered when it is asked for."""

    def __init__(self, model_name: str, stats: npt.NDArray[Any], requests: RequestMetrics) -> None:
        """`stats`: ENGINE_STATS[1], in shared memory."""
        self._labels = (model_name, "0")
        self._stats = stats
        self._requests = requests

    def collect(self) -> Iterator[Metric]:
        stats = self._stats[0].copy()
        yield self._gauge("num_requests_running", "Sequences in the running batch.", stats["num_running"])
        yield self._gauge("num_requests_waiting", "Requests waiting to be scheduled.", stats["num_waiting"])
        used = float(stats["num_blocks_used"]) / max(int(stats["num_blocks"]), 1)
        yield self._gauge("kv_cache_usage_perc", "Share of KV blocks that requests hold; 1 is all.", used)
        yield self._gauge("kv_cache_blocks", "KV blocks of the engine.", stats["num_blocks"])
        for name, documentation, value in (
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats["prefix_cache_queries"]),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats["prefix_cache_hits"]),
            ("prompt_tokens", "Prompt tokens processed.", stats["prompt_tokens"]),
            ("generation_tokens", "Tokens generated.", stats["generation_tokens"]),
            ("num_preemptions", "Requests that lost their KV blocks to others.", stats["num_preemptions"]),
            ("engine_steps", "Confirmed steps.", stats["num_confirmed_steps"]),
            ("step_device_seconds", "Time that the device worked on steps.", stats["step_device_ns"] * 1e-9),
            ("step_exposed_seconds", "Time that the device waited between two steps.", stats["step_exposed_ns"] * 1e-9),
        ):
            yield self._counter(name, documentation, value)
        yield from self._requests.families(self._labels)

    def _gauge(self, name: str, documentation: str, value: float) -> Metric:
        family = GaugeMetricFamily(_PREFIX + name, documentation, labels=LABELS)
        family.add_metric(self._labels, float(value))
        return family

    def _counter(self, name: str, documentation: str, value: float) -> Metric:
        family = CounterMetricFamily(_PREFIX + name, documentation, labels=LABELS)
        family.add_metric(self._labels, float(value))
        return family
