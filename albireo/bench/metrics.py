"""Figures of a run from its outcomes, under the names that `vllm bench serve` saves them by."""

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct

from albireo.bench.outcome import RequestOutcome


class RunMetrics(Struct, frozen=True):
    """Throughput over the time from the first request's start to the last one's end; failed requests bring nothing."""

    duration_s: float
    completed: int
    failed: int
    total_input_tokens: int
    total_output_tokens: int
    total_cached_tokens: int
    request_throughput: float
    output_throughput: float
    total_token_throughput: float
    met_goodput: int | None
    """Requests that met every goodput target; None when there was none."""
    request_goodput: float | None
    """The same per second."""
    peak_concurrency: int
    tokens_per_chunk: float
    """1 when every chunk held one token; more when the server merges them, and then `itl` is per chunk."""
    latencies_ms: dict[str, list[float]]
    """ttft, tpot and e2el with a value per request, itl with one per gap between two chunks of a request."""


def summarise(outcomes: Sequence[RequestOutcome], goodput_ms: Mapping[str, float]) -> RunMetrics:
    """`outcomes` in any order, at least one."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    duration_s = (max(o.end_ns for o in outcomes) - min(o.start_ns for o in outcomes)) / 1e9
    duration_s = max(duration_s, 1e-9)
    output, prompt = sum(o.output_tokens for o in good), sum(o.prompt_tokens for o in good)
    chunks = sum(o.token_chunks for o in good)
    met = sum(_meets(o, goodput_ms) for o in good) if goodput_ms else None
    return RunMetrics(
        duration_s=duration_s,
        completed=len(good),
        failed=len(outcomes) - len(good),
        total_input_tokens=prompt,
        total_output_tokens=output,
        total_cached_tokens=sum(o.cached_tokens for o in good),
        request_throughput=len(good) / duration_s,
        output_throughput=output / duration_s,
        total_token_throughput=(prompt + output) / duration_s,
        met_goodput=met,
        request_goodput=None if met is None else met / duration_s,
        peak_concurrency=peak_concurrency(outcomes),
        tokens_per_chunk=output / chunks if chunks else 0.0,
        latencies_ms={
            "ttft": [o.ttft_ns / 1e6 for o in good],
            "tpot": [o.tpot_ns / 1e6 for o in good if o.tpot_ns is not None],
            "itl": [gap / 1e6 for o in good for gap in o.itl_ns],
            "e2el": [o.e2e_ns / 1e6 for o in good],
        },
    )


def peak_concurrency(outcomes: Sequence[RequestOutcome]) -> int:
    """Most requests under way at one moment; one that ends as another starts is not under way with it."""
    changes = [(o.start_ns, 1) for o in outcomes] + [(o.end_ns, -1) for o in outcomes]
    changes.sort()
    return int(np.cumsum([change for _, change in changes]).max(initial=0))


def distribution(values_ms: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """`mean`, `median`, `std` and one `pNN` per percentile (linear interpolation), milliseconds; {} for no values."""
    if not values_ms:
        return {}
    values = np.asarray(values_ms)
    figures = {"mean": float(values.mean()), "median": float(np.median(values)), "std": float(values.std())}
    return figures | {f"p{p:g}": float(np.percentile(values, p)) for p in percentiles}


def _meets(outcome: RequestOutcome, goodput_ms: Mapping[str, float]) -> bool:
    """A single token has no time per further token: it meets any target for that, as in vLLM."""
    taken = {"ttft": outcome.ttft_ns, "tpot": outcome.tpot_ns or 0.0, "e2el": outcome.e2e_ns}
    return all(taken[name] / 1e6 <= limit for name, limit in goodput_ms.items())
