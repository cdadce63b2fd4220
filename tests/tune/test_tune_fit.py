"""The step model: known parameters come back, and what cannot be told apart is said."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tune_records import load, record, step, turn

from albireo.tune.conclusions import fit_sentences
from albireo.tune.fit import fit_steps, nnls

PART_US = st.floats(1.0, 1e5)


@given(PART_US, PART_US, PART_US)
def test_four_degrees_give_back_scalable_non_scalable_and_latency(
    scalable: float, fixed: float, latency: float
) -> None:
    periods = {t: scalable / t + fixed + latency * math.log2(t) for t in (1, 2, 4, 8)}
    model = fit_steps(periods, {})
    assert model is not None
    for degree in periods:
        assert model.residual(degree) == pytest.approx(0.0, abs=1e-6)
    largest = max(scalable, fixed, latency)
    assert model.scalable_us == pytest.approx(scalable, abs=1e-3 * largest)
    assert model.non_scalable_us == pytest.approx(fixed, abs=1e-3 * largest)
    assert model.latency_us == pytest.approx(latency, abs=1e-3 * largest)
    assert not model.is_exact
    assert not model.has_recorded_communication


@given(PART_US, PART_US, PART_US, PART_US)
def test_recorded_collectives_are_taken_off_and_fitted_by_themselves(
    scalable: float, fixed: float, bandwidth: float, latency: float
) -> None:
    exchanged = {t: bandwidth * (t - 1) / t + latency * math.log2(t) for t in (1, 2, 4)}
    periods = {t: scalable / t + fixed + exchanged[t] for t in exchanged}
    model = fit_steps(periods, exchanged)
    assert model is not None
    assert model.has_recorded_communication
    assert model.num_parameters == 2
    largest = max(scalable, fixed, bandwidth, latency)
    assert model.scalable_us == pytest.approx(scalable, abs=1e-3 * largest)
    assert model.non_scalable_us == pytest.approx(fixed, abs=1e-3 * largest)
    assert model.bandwidth_us == pytest.approx(bandwidth, abs=1e-3 * largest)
    assert model.latency_us == pytest.approx(latency, abs=1e-3 * largest)


@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_non_negative_least_squares_meets_its_conditions(num_columns: int, seed: int) -> None:
    """Karush-Kuhn-Tucker: no gradient along what is above 0, none downhill along what is at 0."""
    numbers = np.random.default_rng(seed)
    columns, target = numbers.normal(size=(5, num_columns)), numbers.normal(size=5)
    found = nnls(columns, target)
    gradient = columns.T @ (columns @ found - target)
    assert (found >= 0).all()
    assert np.allclose(gradient[found > 0], 0, atol=1e-8)
    assert (gradient[found == 0] >= -1e-8).all()


def test_one_degree_cannot_be_fitted() -> None:
    assert fit_steps({2: 100.0}, {}) is None
    assert fit_sentences(record([turn(2, load(1.0), cost=step(5.0))])) == [
        "No fit: it takes steps of two degrees at least."
    ]


def test_as_many_parameters_as_points_is_said_to_prove_nothing() -> None:
    two = fit_steps({1: 1000.0, 2: 600.0}, {})
    three = fit_steps({1: 1000.0, 2: 600.0, 4: 450.0}, {})
    assert two is not None
    assert three is not None
    assert (two.is_exact, two.num_parameters) == (True, 2)
    assert (three.is_exact, three.num_parameters) == (True, 3)
    assert two.latency_us == 0.0
    text = " ".join(fit_sentences(record([turn(t, load(1.0), cost=step(1000.0 / t)) for t in (1, 2)])))
    assert "exact by construction and proves nothing" in text
    assert "communication as a whole is within the other parts" in text


def test_a_fit_that_would_need_a_negative_part_is_said_to_miss() -> None:
    turns = [turn(t, load(1.0), cost=step(period)) for t, period in ((1, 1000.0), (2, 300.0), (4, 320.0))]
    text = " ".join(fit_sentences(record(turns)))
    assert "a part would have to be negative" in text
    assert "proves nothing" not in text


def test_where_the_fit_misses_is_named() -> None:
    periods = {1: 1000.0, 2: 500.0, 4: 250.0, 8: 500.0}
    model = fit_steps(periods, dict.fromkeys(periods, 0.0))
    assert model is not None
    assert 8 in model.misses
    turns = [turn(t, load(1.0), cost=step(period, 0.0), num_gpus=8) for t, period in periods.items()]
    assert any("The fit misses" in line and "t = 8 by -" in line for line in fit_sentences(record(turns)))
