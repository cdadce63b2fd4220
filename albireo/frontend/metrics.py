"""`GET /metrics`: vLLM's metrics under `albireo:`, so that a dashboard ports by prefix.

Nothing is observed here: the engine's gauges and counters, and what all frontends count, are read from shared memory
when asked for.
"""

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from albireo.config import SchedulerConfig
from albireo.frontend.request_metrics import LABELS, RequestMetrics, histogram_family
from albireo.shm.stats import ITERATION_TOKENS

_PREFIX = "albireo:"


class MetricsCollector(Collector):
    """A replica's counters and its requests, gathered when they are asked for."""

    def __init__(
        self, labels: tuple[str, str], scheduler: SchedulerConfig, stats: npt.NDArray[Any], requests: RequestMetrics
    ) -> None:
        """`labels`: values of LABELS. `stats`: ENGINE_STATS[1], in shared memory."""
        self._scheduler = scheduler
        self._labels = labels
        self._stats = stats
        self._requests = requests

    def collect(self) -> Iterator[Metric]:
        stats = self._stats[0].copy()
        yield self._gauge("num_requests_running", "Sequences in the running batch.", stats["num_running"])
        yield self._gauge("num_requests_waiting", "Requests waiting to be scheduled.", stats["num_waiting"])
        used = float(stats["num_blocks_used"]) / max(int(stats["num_blocks"]), 1)
        yield self._gauge("kv_cache_usage_perc", "Share of KV blocks that requests hold; 1 is all.", used)
        swap_blocks = self._scheduler.num_swap_blocks
        swapped = float(stats["num_swap_blocks_used"]) / max(swap_blocks, 1)
        yield self._gauge("cpu_cache_usage_perc", "Share of the swap space that preempted requests hold.", swapped)
        yield self._gauge("kv_cache_blocks", "KV blocks of the engine.", stats["num_blocks"])
        yield self._gauge("run_ahead_depth", "Steps that may be planned ahead just now.", stats["run_ahead_depth"])
        yield self._cache_config(int(stats["num_blocks"]))
        for name, documentation, value in (
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats["prefix_cache_queries"]),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats["prefix_cache_hits"]),
            ("prompt_tokens", "Prompt tokens processed.", stats["prompt_tokens"]),
            ("prompt_tokens_cached", "Prompt tokens that came from the prefix cache.", stats["prefix_cache_hits"]),
            ("generation_tokens", "Tokens generated.", stats["generation_tokens"]),
            ("num_preemptions", "Requests that lost their KV blocks to others.", stats["num_preemptions"]),
            ("swapped_out_blocks", "KV blocks copied to the swap space.", stats["swapped_out_blocks"]),
            ("swapped_in_blocks", "KV blocks copied back from it.", stats["swapped_in_blocks"]),
            ("engine_steps", "Confirmed steps.", stats["num_confirmed_steps"]),
            ("step_device_seconds", "Time that the device worked on steps.", stats["step_device_ns"] * 1e-9),
            ("step_exposed_seconds", "Time that the device waited between two steps.", stats["step_exposed_ns"] * 1e-9),
        ):
            yield self._counter(name, documentation, value)
        yield histogram_family(
            "iteration_tokens_total", "Tokens of a step, prompts and decodes.",
            self._labels, self._stats["iteration_tokens"], ITERATION_TOKENS,
        )  # fmt: skip
        yield from self._requests.families(self._labels)

    def _cache_config(self, num_blocks: int) -> Metric:
        """As vLLM has it: the value is always 1, what it says is in the labels."""
        settings = {
            "block_size": str(self._scheduler.block_size),
            "enable_prefix_caching": str(self._scheduler.enable_prefix_caching),
            "num_gpu_blocks": str(num_blocks),
            "num_cpu_blocks": str(self._scheduler.num_swap_blocks),
        }
        labels = [*LABELS, *settings]
        family = GaugeMetricFamily(_PREFIX + "cache_config_info", "How the KV cache is set up.", labels=labels)
        family.add_metric((*self._labels, *settings.values()), 1.0)
        return family

    def _gauge(self, name: str, documentation: str, value: float) -> Metric:
        family = GaugeMetricFamily(_PREFIX + name, documentation, labels=LABELS)
        family.add_metric(self._labels, float(value))
        return family

    def _counter(self, name: str, documentation: str, value: float) -> Metric:
        family = CounterMetricFamily(_PREFIX + name, documentation, labels=LABELS)
        family.add_metric(self._labels, float(value))
        return family
