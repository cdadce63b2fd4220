"""What is counted of requests, and how /metrics shows it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client.core import Metric

from albireo.frontend.request_metrics import Histogram, RequestMetrics
from albireo.shm.layout import NUM_REQUEST_BUCKETS, REQUEST_COUNTS


def samples(metric: Metric) -> dict[str, float]:
    """Values by the part of the sample's name behind the metric's, and its bucket."""
    return {
        sample.name.removeprefix(metric.name) + sample.labels.get("le", ""): sample.value for sample in metric.samples
    }


@pytest.fixture
def counts() -> npt.NDArray[Any]:
    return np.zeros(2, REQUEST_COUNTS)


def test_a_histogram_counts_up_to_its_bounds(counts: npt.NDArray[Any]) -> None:
    histogram = RequestMetrics(counts, 0).prompt_tokens
    for value in (1, 2, 3, 200_000):
        histogram.observe(value)
    shown = samples(histogram.family(("m", "0")))
    assert (shown["_bucket1"], shown["_bucket2"], shown["_bucket5"]) == (1, 2, 3)
    assert (shown["_bucket100000"], shown["_bucket+Inf"]) == (3, 4)
    assert (shown["_count"], shown["_sum"]) == (4, 200_006)


def test_equal_values_are_counted_at_once(counts: npt.NDArray[Any]) -> None:
    histogram = RequestMetrics(counts, 0).inter_token_latency
    histogram.observe(0.5, 256)
    assert samples(histogram.family(("m", "0")))["_count"] == 256
    assert samples(histogram.family(("m", "0")))["_sum"] == 128


def test_every_frontend_shows_the_sum_over_all_of_them(counts: npt.NDArray[Any]) -> None:
    first, second = RequestMetrics(counts, 0), RequestMetrics(counts, 1)
    first.queue_time.observe(0.01)
    second.queue_time.observe(100.0, 2)
    for metrics in (first, second):
        shown = samples(metrics.queue_time.family(("m", "0")))
        assert (shown["_bucket0.05"], shown["_count"]) == (1, 3)
        assert shown["_sum"] == pytest.approx(200.01)


def test_every_histogram_has_a_field_of_its_own_and_room_for_its_buckets(counts: npt.NDArray[Any]) -> None:
    metrics = RequestMetrics(counts, 1)
    histograms = [value for value in vars(metrics).values() if isinstance(value, Histogram)]
    for histogram in histograms:
        histogram.observe(1e9)
    for field in ("time_to_first_token", "inter_token_latency", "generation_tokens"):
        assert counts[field]["buckets"].sum() == 1
    assert len(histograms) == sum(not name.startswith("finished_") for name in REQUEST_COUNTS.names or ())
    for family in metrics.families(("m", "0")):
        shown = samples(family)
        if "_bucket+Inf" in shown:
            assert shown["_bucket+Inf"] == 1, family.name
            assert len(shown) <= NUM_REQUEST_BUCKETS + 2
