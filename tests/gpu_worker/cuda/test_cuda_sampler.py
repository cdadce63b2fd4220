"""The GPU's sampler against the definition, to the token."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sampling_rigs import admissions_of, make_sampler, sampled

sys.path.append(str(Path(__file__).parents[1]))  # what the CPU's tests share
from sampling_batches import draw, make_table, random_table

from albireo.gpu_worker.sampling.oracle import OracleSampler

pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim > 0:DeprecationWarning", "ignore::RuntimeWarning"
)
"""The interpreter's: conversions, and infinities that a GPU does not mention."""
INF, NAN = math.inf, math.nan
DTYPES = (torch.float32, torch.bfloat16)


def normal_logits(generator: np.random.Generator, n: int, vocab: int, scale: float) -> torch.Tensor:
    return torch.from_numpy((generator.standard_normal((n, vocab)) * scale).astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("seed", "vocab", "scale", "settings"),
    [
        (0, 97, 6.0, {"capacity": 512}),
        (1, 512, 1.0, {"target_programs": 1}),
        (2, 1030, 6.0, {"target_programs": 60}),
        (3, 1030, 0.01, {"capacity": 16}),
        (4, 1030, 1.0, {"choose_tile": 64}),
        (5, 300, 3.0, {}),
    ],
)
def test_rows_of_every_kind_get_the_tokens_of_the_definition(
    seed: int, vocab: int, scale: float, settings: dict[str, int], dtype: torch.dtype, device: torch.device
) -> None:
    """With bf16 at a small scale nearly all tokens tie; with a small capacity rows are drawn from as a whole."""
    generator, n = np.random.default_rng(seed), 8
    table = random_table(n, generator)
    logits = normal_logits(generator, n, vocab, scale).to(dtype)
    slots, positions = generator.permutation(n), generator.integers(0, 2**31 - 1, n)
    expected = draw(logits, table, slots.tolist(), positions.tolist(), OracleSampler())
    sampler = make_sampler(admissions_of(table, device), n, vocab, **settings)
    assert sampled(sampler, logits.to(device), slots, positions) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_strange_logits_get_the_tokens_of_the_definition(dtype: torch.dtype, device: torch.device) -> None:
    generator, vocab = np.random.default_rng(7), 100
    rows = [
        [NAN] * vocab,
        [-INF] * vocab,
        [NAN, -INF] * 25 + [-3e38] + [NAN] * 49,
        [0.0, -0.0] * 50,
        [1.0] * 50 + [INF, 3.0] * 25,
        [-1.0] * 70 + [1e-40, NAN] * 15,
        [3e38, -3e38] * 50,
        [2.0] * 70 + [7.5] * 3 + [NAN] * 27,
    ]
    logits = torch.tensor(rows).to(dtype)
    for parameters in ({}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_p": 0.5, "min_p": 0.01, "top_k": 60}):
        for temperature in (0.9, 1e-5):
            table = make_table([temperature] * len(rows), **parameters)
            table.seed[:] = generator.integers(-(2**63), 2**63, len(rows))
            expected = draw(logits, table, sampler=OracleSampler())
            sampler = make_sampler(admissions_of(table, device), len(rows), vocab)
            slots = list(range(len(rows)))
            assert sampled(sampler, logits.to(device), slots, slots) == expected, (parameters, temperature)


def test_a_temperature_beyond_float32s_inverse_is_exact(device: torch.device) -> None:
    table = make_table([1e-45, 1e-39, 1e-45], top_p=[1.0, 1.0, 0.5])
    logits = torch.tensor([[1.0, 3.0, 2.0], [-1.0, -3.0, -2.0], [1e-45, 2e-45, 0.0]]).repeat(1, 50)
    expected = draw(logits, table, sampler=OracleSampler())
    sampler = make_sampler(admissions_of(table, device), 3, 150, target_programs=1)
    assert sampled(sampler, logits.to(device), [0, 1, 2], [0, 1, 2]) == expected


def test_ties_at_a_filters_edge_are_kept_by_id(device: torch.device) -> None:
    """80 equal logits: top_k keeps the first ids, and so does top_p. Every token kept is drawn at some position."""
    table = make_table([1.0, 1.0], top_k=[3, 0], top_p=[1.0, 0.045])
    logits = torch.zeros(16, 80, dtype=torch.bfloat16, device=device)
    for slot, kept in ((0, {0, 1, 2}), (1, {0, 1, 2, 3})):
        for settings in ({}, {"capacity": 16}):
            sampler = make_sampler(admissions_of(table, device), 16, 80, **settings)
            assert set(sampled(sampler, logits, [slot] * 16, list(range(16)))) == kept


def test_rows_that_are_dead_or_padding_get_no_token(device: torch.device) -> None:
    table = make_table([0.0, 0.8, 0.8, 0.8], top_k=[0, 0, 3, 0])
    logits = normal_logits(np.random.default_rng(8), 5, 100, 3.0)
    slots = [2, -1, 0, 3, 1]
    expected = draw(logits, table, [2, 0, 0, 3, 1], [4, 5, 6, 7, 8], OracleSampler())
    for dtype in (torch.int32, torch.uint8, torch.bool):
        alive = torch.tensor([1, 0, 1, 1], dtype=dtype, device=device)
        sampler = make_sampler(admissions_of(table, device), 5, 100)
        tokens = sampled(sampler, logits.to(device), slots, [4, 5, 6, 7, 8], alive)
        assert tokens == [expected[0], -1, expected[2], expected[3], -1]


def test_logits_may_be_a_view_and_stay_as_they_are(device: torch.device) -> None:
    generator = np.random.default_rng(9)
    table = random_table(6, generator)
    wide = normal_logits(generator, 12, 160, 4.0).to(device)
    before = wide.clone()
    view = wide[::2, 30:130]
    sampler = make_sampler(admissions_of(table, device), 6, 100)
    slots = list(range(6))
    assert sampled(sampler, view, slots, slots) == draw(view.cpu(), table, sampler=OracleSampler())
    assert torch.equal(wide, before)


def test_a_batch_leaves_nothing_behind_for_the_next(device: torch.device) -> None:
    """Working memory is never cleared: larger batches before smaller ones, cut into other splits."""
    generator = np.random.default_rng(10)
    table = random_table(20, generator)
    sampler = make_sampler(admissions_of(table, device), 20, 700, target_programs=24)
    for n in (20, 1, 6, 2):
        logits = normal_logits(generator, n, 700, 5.0)
        slots, positions = generator.permutation(20)[:n], generator.integers(0, 1000, n)
        expected = draw(logits, table, slots.tolist(), positions.tolist(), OracleSampler())
        assert (
            sampled(sampler, logits.to(device), slots, positions, torch.ones(20, dtype=torch.uint8, device=device))
            == expected
        )
