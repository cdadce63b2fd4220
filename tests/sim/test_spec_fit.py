"""A spec from step times, and back."""

import random

import pytest
from msgspec.structs import replace
from round_numbers import device, model
from spec_fit import Measured, fit_spec, predict

from albireo.sim.spec import Efficiency, Link, Overhead, Sampling

PEAKS = device(flops=replace(device().flops, bfloat16=1e11), memory_bandwidth=4e10)
TRUE = replace(
    PEAKS,
    efficiency=Efficiency(0.6, 0.8, 0.1, 0.7, 0.5),
    link=Link(1e9, 20e-6),
    overhead=Overhead(150e-6, 0.0, 0.0, 0.0),
    sampling=Sampling(0.0, 40.0),
)
GRID = [
    Measured(size, batch, context, 1.0)
    for size in (1, 2)
    for batch in (1, 4, 16, 64)
    for context in (128, 512, 1024, 4096)
]


@pytest.mark.slow
def test_the_steps_of_a_spec_are_those_of_the_spec_that_is_fitted_to_them() -> None:
    seconds = predict(TRUE, model(), "bfloat16", "local", GRID)
    points = [point._replace(seconds=each) for point, each in zip(GRID, seconds, strict=True)]
    fitted = fit_spec(PEAKS, model(), "bfloat16", "local", points)
    assert predict(fitted, model(), "bfloat16", "local", GRID) == pytest.approx(seconds, rel=0.02)


@pytest.mark.slow
def test_noise_of_a_tenth_does_not_lead_it_astray() -> None:
    noise = random.Random(0)
    seconds = predict(TRUE, model(), "bfloat16", "local", GRID)
    points = [point._replace(seconds=each * noise.uniform(0.9, 1.1)) for point, each in zip(GRID, seconds, strict=True)]
    fitted = fit_spec(PEAKS, model(), "bfloat16", "local", points)
    assert predict(fitted, model(), "bfloat16", "local", GRID) == pytest.approx(seconds, rel=0.1)
