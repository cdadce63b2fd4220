"""Latencies and sizes of requests, as the frontends see them: counted in shared memory, shown as a sum over frontends.

Observed once per step or per request, so a histogram is a bisection and two additions (prometheus_client's own take
3 µs per observation).
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from albireo.frontend.generation import Generation

_PREFIX = "albireo:"
LABELS = ("model_name", "engine")

_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_PER_TOKEN_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_REQUEST_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 480.0)
_SAMPLES = (1, 2, 5, 10, 20)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


def histogram_family(
    name: str, documentation: str, labels: tuple[str, ...], counts: npt.NDArray[Any], bounds: tuple[float, ...]
) -> Metric:
    """The sum over `counts`, REQUEST_HISTOGRAM[n], as prometheus_client exports it: cumulative."""
    totals = np.cumsum(counts["buckets"].sum(axis=0), dtype=np.float64).tolist()
    ends = (*map(str, bounds), "+Inf")
    family = HistogramMetricFamily(_PREFIX + name, documentation, labels=LABELS)
    family.add_metric(labels, list(zip(ends, totals, strict=False)), float(counts["sum"].sum()))
    return family


class Histogram:
    """Counts per bucket; `bounds` are the buckets' upper ends, in the metric's unit."""

    def __init__(
        self, counts: npt.NDArray[Any], index: int, field: str, name: str, documentation: str, bounds: tuple[float, ...]
    ) -> None:
        """`field` of `counts`, REQUEST_COUNTS[num_frontends], of which number `index` is written here."""
        self._all = counts[field]
        self._buckets = self._all["buckets"][index]
        self._sum = self._all["sum"][index : index + 1]
        self._name = name
        self._documentation = documentation
        self._bounds = bounds

    def observe(self, value: float, count: int = 1) -> None:
        """`count` times the same value."""
        self._buckets[bisect_left(self._bounds, value)] += count
        self._sum[0] += value * count

    def family(self, labels: tuple[str, ...]) -> Metric:
        """Of all frontends."""
        return histogram_family(self._name, self._documentation, labels, self._all, self._bounds)


class RequestMetrics:
    """Written by `EngineClient`, on the event loop; read by /metrics."""

    def __init__(self, counts: npt.NDArray[Any], index: int) -> None:
        """`counts`: REQUEST_COUNTS[num_frontends]; `index`: this frontend's."""
        self._counts = counts
        self._own = counts[index : index + 1]

        def histogram(field: str, name: str, documentation: str, bounds: tuple[float, ...]) -> Histogram:
            return Histogram(counts, index, field, name, documentation, bounds)

        self.time_to_first_token = histogram(
            "time_to_first_token", "time_to_first_token_seconds",
            "From a request's submission to its first token.", _TTFT_S,
        )  # fmt: skip
        self.inter_token_latency = histogram(
            "inter_token_latency", "inter_token_latency_seconds", "Between two tokens of a request.", _PER_TOKEN_S
        )
        self.time_per_output_token = histogram(
            "time_per_output_token", "request_time_per_output_token_seconds",
            "Mean time per token after the first, per request.", _PER_TOKEN_S,
        )  # fmt: skip
        self.e2e_latency = histogram(
            "e2e_latency", "e2e_request_latency_seconds", "From a request's submission to its last token.", _REQUEST_S
        )
        self.queue_time = histogram("queue_time", "request_queue_time_seconds", "Waiting to be scheduled.", _REQUEST_S)
        self.prefill_time = histogram(
            "prefill_time", "request_prefill_time_seconds", "From scheduling to the first token.", _REQUEST_S
        )
        self.decode_time = histogram(
            "decode_time", "request_decode_time_seconds", "From the first token to the last.", _REQUEST_S
        )
        self.inference_time = histogram(
            "inference_time", "request_inference_time_seconds", "From scheduling to the last token.", _REQUEST_S
        )
        self.prompt_tokens = histogram("prompt_tokens", "request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self.generation_tokens = histogram(
            "generation_tokens", "request_generation_tokens", "Output tokens of a request.", _TOKENS
        )
        self.params_n = histogram("params_n", "request_params_n", "The parameter n of a request.", _SAMPLES)
        self.params_max_tokens = histogram(
            "params_max_tokens", "request_params_max_tokens", "Most output tokens that a request may have.", _TOKENS
        )
        self.max_num_generation_tokens = histogram(
            "max_num_generation_tokens", "request_max_num_generation_tokens",
            "Output tokens of the longest of a request's n samples.", _TOKENS,
        )  # fmt: skip
        self.prefill_kv_computed_tokens = histogram(
            "prefill_kv_computed_tokens", "request_prefill_kv_computed_tokens",
            "Prompt tokens of a request that the prefix cache did not have.", _TOKENS,
        )  # fmt: skip

    def observe_first_token(self, generation: Generation, now_ns: int) -> None:
        """The first token arrived from the engine."""
        generation.first_token_ns = now_ns
        self.time_to_first_token.observe((now_ns - generation.submitted_ns) * 1e-9)

    def observe_gap(self, gap_ns: int, count: int) -> None:
        """So many requests had this long between two tokens."""
        self.inter_token_latency.observe(gap_ns * 1e-9, count)

    def observe_end(self, generation: Generation, finish_reason: str, now_ns: int) -> None:
        """A request's terminal event. Latencies of aborted requests say nothing about the engine."""
        self._own[f"finished_{finish_reason}"] += 1
        self.prompt_tokens.observe(generation.num_prompt_tokens)
        self.generation_tokens.observe(generation.num_tokens)
        self.params_max_tokens.observe(generation.max_tokens)
        if generation.group.end(generation.num_tokens):
            self.params_n.observe(generation.group.num_samples)
            self.max_num_generation_tokens.observe(generation.group.max_num_tokens)
        first_ns = generation.first_token_ns
        if finish_reason in ("abort", "error", "timeout") or not first_ns:
            return
        self.e2e_latency.observe((now_ns - generation.submitted_ns) * 1e-9)
        self.decode_time.observe((now_ns - first_ns) * 1e-9)
        if generation.num_tokens > 1:
            self.time_per_output_token.observe((now_ns - first_ns) * 1e-9 / (generation.num_tokens - 1))
        if admitted_ns := generation.admitted_ns:
            self.prefill_kv_computed_tokens.observe(generation.num_prompt_tokens - generation.num_cached_tokens)
            self.queue_time.observe((admitted_ns - generation.submitted_ns) * 1e-9)
            self.prefill_time.observe((first_ns - admitted_ns) * 1e-9)
            self.inference_time.observe((now_ns - admitted_ns) * 1e-9)

    def families(self, labels: tuple[str, ...]) -> Iterator[Metric]:
        """Everything, of all frontends together."""
        success = CounterMetricFamily(
            _PREFIX + "request_success", "Requests that ended.", labels=(*LABELS, "finished_reason")
        )
        for reason in ("stop", "length", "abort", "error", "timeout"):
            success.add_metric((*labels, reason), float(self._counts[f"finished_{reason}"].sum()))
        yield success
        for value in vars(self).values():
            if isinstance(value, Histogram):
                yield value.family(labels)
