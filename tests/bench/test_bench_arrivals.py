import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from albireo.bench.arrivals import arrival_times_s


def test_an_infinite_rate_sends_all_at_once() -> None:
    assert arrival_times_s(5, math.inf, 1.0, 0).tolist() == [0] * 5


@given(
    count=st.integers(2, 200),
    rate=st.floats(0.1, 1000),
    burstiness=st.floats(0.05, 100),
    seed=st.integers(0, 2**32),
)
def test_arrivals_ascend_from_zero_and_end_when_the_rate_says(
    count: int, rate: float, burstiness: float, seed: int
) -> None:
    times = arrival_times_s(count, rate, burstiness, seed)
    assert len(times) == count
    assert times[0] == 0
    assert (np.diff(times) >= 0).all()
    assert times[-1] == pytest.approx((count - 1) / rate)
    assert times.tolist() == arrival_times_s(count, rate, burstiness, seed).tolist()


def test_infinite_burstiness_spaces_requests_evenly() -> None:
    assert arrival_times_s(5, 2.0, math.inf, 0).tolist() == [0, 0.5, 1, 1.5, 2]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_vary_as_a_gamma_distribution_of_that_shape(burstiness: float) -> None:
    gaps = np.diff(arrival_times_s(50_001, 10.0, burstiness, seed=1))
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)


def test_another_seed_gives_other_arrivals() -> None:
    assert arrival_times_s(9, 1.0, 1.0, 0).tolist() != arrival_times_s(9, 1.0, 1.0, 1).tolist()
