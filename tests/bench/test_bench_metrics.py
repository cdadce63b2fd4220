import pytest
from hypothesis import given
from hypothesis import strategies as st

from albireo.bench.metrics import distribution, peak_concurrency, summarise
from albireo.bench.outcome import RequestOutcome

MS = 1_000_000


def request(start_ms: int, ttft_ms: int, gaps_ms: list[int], tokens: int | None = None) -> RequestOutcome:
    e2e_ms = ttft_ms + sum(gaps_ms)
    return RequestOutcome(
        start_ns=start_ms * MS,
        end_ns=(start_ms + e2e_ms) * MS,
        prompt_tokens=10,
        output_tokens=tokens or len(gaps_ms) + 1,
        cached_tokens=4,
        counted_by_server=True,
        token_chunks=len(gaps_ms) + 1,
        ttft_ns=ttft_ms * MS,
        e2e_ns=e2e_ms * MS,
        itl_ns=[gap * MS for gap in gaps_ms],
    )


FAILED = RequestOutcome(start_ns=0, end_ns=2000 * MS, error="HTTP 500")


def test_throughput_is_over_the_whole_run_and_failures_bring_nothing() -> None:
    metrics = summarise([request(0, 100, [10] * 4), request(500, 100, [10] * 9), FAILED], {})
    assert metrics.duration_s == 2.0
    assert (metrics.completed, metrics.failed) == (2, 1)
    assert metrics.request_throughput == 1.0
    assert metrics.output_throughput == 15 / 2
    assert metrics.total_token_throughput == 35 / 2
    assert metrics.total_cached_tokens == 8
    assert metrics.request_goodput is None


def test_latencies_have_a_value_per_request_and_gaps_are_pooled() -> None:
    latencies = summarise([request(0, 100, [10, 30]), request(0, 50, [20])], {}).latencies_ms
    assert latencies["ttft"] == [100, 50]
    assert latencies["itl"] == [10, 30, 20]
    assert latencies["tpot"] == [20, 20]
    assert latencies["e2el"] == [140, 70]


def test_merged_tokens_show_in_tokens_per_chunk_and_time_per_token() -> None:
    metrics = summarise([request(0, 100, [40, 40], tokens=9)], {})
    assert metrics.tokens_per_chunk == 3
    assert metrics.latencies_ms["itl"] == [40, 40]
    assert metrics.latencies_ms["tpot"] == [10]


def test_goodput_counts_requests_that_meet_every_target() -> None:
    outcomes = [request(0, 100, [10]), request(0, 300, [10]), request(0, 100, [90]), request(0, 100, [])]
    metrics = summarise(outcomes, {"ttft": 100, "tpot": 50})
    assert metrics.request_goodput == pytest.approx(2 / metrics.duration_s)


def test_only_failures_give_figures_of_nothing() -> None:
    metrics = summarise([FAILED], {"ttft": 1})
    assert (metrics.completed, metrics.output_throughput, metrics.request_goodput) == (0, 0, 0)
    assert metrics.tokens_per_chunk == 0
    assert distribution(metrics.latencies_ms["ttft"], [50]) == {}


def test_percentiles_are_interpolated_between_values() -> None:
    figures = distribution([4.0, 1.0, 3.0, 2.0], [0, 50, 90, 99.9, 100])
    assert figures["mean"] == 2.5
    assert figures["median"] == figures["p50"] == 2.5
    assert figures["std"] == pytest.approx(1.25**0.5)
    assert (figures["p0"], figures["p100"]) == (1, 4)
    assert figures["p90"] == pytest.approx(3.7)
    assert figures["p99.9"] == pytest.approx(3.997)


@given(spans=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 10)), min_size=1, max_size=15))
def test_peak_concurrency_is_the_most_that_overlap_at_any_moment(spans: list[tuple[int, int]]) -> None:
    outcomes = [RequestOutcome(start_ns=start, end_ns=start + length) for start, length in spans]
    at_each_moment = [sum(o.start_ns <= t < o.end_ns for o in outcomes) for t in range(31)]
    assert peak_concurrency(outcomes) == max(at_each_moment)
