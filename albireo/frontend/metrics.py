"""`GET /metrics`: vLLM's metrics under `albireo:`, so that a dashboard ports by prefix.

The engine's gauges and counters are read from shared memory when asked for. Latencies are seen here, once per token,
so their histograms are a bisection and two additions (prometheus_client's own take 3 µs per observation; a streamed
token as a whole should take less than 40).
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from albireo.frontend.generation import Generation

_PREFIX = "albireo:"
_LABELS = ("model_name", "engine")

_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_PER_TOKEN_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    10.0,
)
_REQUEST_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 480.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class Histogram:
    """Counts per bucket; `bounds` are the buckets' upper ends, in the metric's unit."""

    def __init__(self, name: str, documentation: str, bounds: tuple[float, ...]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """`count` times the same value."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def family(self, labels: tuple[str, ...]) -> Metric:
        """As prometheus_client exports it: cumulative counts."""
        buckets, total = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family = HistogramMetricFamily(_PREFIX + self._name, self._documentation, labels=_LABELS)
        family.add_metric(labels, buckets, self._sum)
        return family


class RequestMetrics:
    """What this frontend sees of its requests. Written by `EngineClient`, on the event loop."""

    def __init__(self) -> None:
        self.time_to_first_token = Histogram(
            "time_to_first_token_seconds", "From a request's submission to its first token.", _TTFT_S
        )
        self.inter_token_latency = Histogram(
            "inter_token_latency_seconds", "Between two tokens of a request.", _PER_TOKEN_S
        )
        self.time_per_output_token = Histogram(
            "request_time_per_output_token_seconds", "Mean time per token after the first, per request.", _PER_TOKEN_S
        )
        self.e2e_latency = Histogram(
            "e2e_request_latency_seconds", "From a request's submission to its last token.", _REQUEST_S
        )
        self.queue_time = Histogram("request_queue_time_seconds", "Waiting to be scheduled.", _REQUEST_S)
        self.prefill_time = Histogram("request_prefill_time_seconds", "From scheduling to the first token.", _REQUEST_S)
        self.decode_time = Histogram("request_decode_time_seconds", "From the first token to the last.", _REQUEST_S)
        self.inference_time = Histogram(
            "request_inference_time_seconds", "From scheduling to the last token.", _REQUEST_S
        )
        self.prompt_tokens = Histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self.generation_tokens = Histogram("request_generation_tokens", "Output tokens of a request.", _TOKENS)
        self.finished: Counter[str] = Counter(stop=0, length=0, abort=0)
        """Requests by finish reason."""

    def observe_first_token(self, generation: Generation, now_ns: int) -> None:
        """The first token arrived from the engine."""
        generation.first_token_ns = now_ns
        self.time_to_first_token.observe((now_ns - generation.submitted_ns) * 1e-9)

    def observe_gap(self, gap_ns: int, count: int) -> None:
        """So many requests had this long between two tokens."""
        self.inter_token_latency.observe(gap_ns * 1e-9, count)

    def observe_end(self, generation: Generation, finish_reason: str, now_ns: int) -> None:
        """A request's terminal event. Latencies of aborted requests say nothing about the engine."""
        self.finished[finish_reason] += 1
        self.prompt_tokens.observe(generation.num_prompt_tokens)
        self.generation_tokens.observe(generation.num_tokens)
        first_ns = generation.first_token_ns
        if finish_reason == "abort" or not first_ns:
            return
        self.e2e_latency.observe((now_ns - generation.submitted_ns) * 1e-9)
        self.decode_time.observe((now_ns - first_ns) * 1e-9)
        if generation.num_tokens > 1:
            self.time_per_output_token.observe((now_ns - first_ns) * 1e-9 / (generation.num_tokens - 1))
        if admitted_ns := generation.admitted_ns:
            self.queue_time.observe((admitted_ns - generation.submitted_ns) * 1e-9)
            self.prefill_time.observe((first_ns - admitted_ns) * 1e-9)
            self.inference_time.observe((now_ns - admitted_ns) * 1e-9)

    def histograms(self) -> list[Histogram]:
        return [value for value in vars(self).values() if isinstance(value, Histogram)]


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
        success = CounterMetricFamily(
            _PREFIX + "request_success", "Requests that ended.", labels=(*_LABELS, "finished_reason")
        )
        for reason, count in self._requests.finished.items():
            success.add_metric((*self._labels, reason), count)
        yield success
        for histogram in self._requests.histograms():
            yield histogram.family(self._labels)

    def _gauge(self, name: str, documentation: str, value: float) -> Metric:
        family = GaugeMetricFamily(_PREFIX + name, documentation, labels=_LABELS)
        family.add_metric(self._labels, float(value))
        return family

    def _counter(self, name: str, documentation: str, value: float) -> Metric:
        family = CounterMetricFamily(_PREFIX + name, documentation, labels=_LABELS)
        family.add_metric(self._labels, float(value))
        return family
