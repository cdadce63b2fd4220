"""The sampler: its definition on small cases, the kernels against it, and the distribution that comes out."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_batches import DTYPES, INF, NAN, draw, make_table, random_table, rows_of_logits, slot_parameters

from albireo.gpu_worker.sampling import arguments, cpu, kernels
from albireo.gpu_worker.sampling.cpu import CpuSampler
from albireo.gpu_worker.sampling.oracle import OracleSampler, kept_tokens, mass

# --- the definition, on cases that can be checked by hand


def kept(probabilities: list[float], **filters: float) -> list[int]:
    """Token ids kept from a row of these probabilities at temperature 1."""
    settings_: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0, **filters}
    ids: list[int] = kept_tokens(np.log(np.array(probabilities)).astype(np.float32), **settings_).tolist()
    return ids


def test_top_p_keeps_the_shortest_prefix_that_reaches_it() -> None:
    assert kept([0.15, 0.5, 0.05, 0.3], top_p=0.7) == [1, 3]
    assert kept([0.15, 0.5, 0.05, 0.3], top_p=0.9) == [1, 3, 0]
    assert kept([0.15, 0.5, 0.05, 0.3], top_p=1e-6) == [1]


def test_ties_are_kept_in_the_order_of_their_ids() -> None:
    assert kept([0.2] * 5, top_k=3) == [0, 1, 2]
    assert kept([0.2] * 5, top_p=0.5) == [0, 1, 2]


def test_min_p_is_relative_to_the_most_probable_token_and_keeps_equals() -> None:
    assert kept([0.4, 0.3, 0.2, 0.1], min_p=0.4) == [0, 1, 2]
    assert kept([0.4, 0.4, 0.2], min_p=1.0) == [0, 1]


def test_top_p_counts_only_the_mass_that_the_other_filters_left() -> None:
    assert kept([0.4, 0.3, 0.2, 0.1], top_p=0.75) == [0, 1, 2]
    assert kept([0.4, 0.3, 0.2, 0.1], top_p=0.75, min_p=0.4) == [0, 1]
    assert kept([0.4, 0.3, 0.2, 0.1], top_p=0.55, top_k=2) == [0]


def test_temperature_comes_before_the_filters() -> None:
    assert kept([0.6, 0.3, 0.1], top_p=0.8) == [0, 1]
    assert kept([0.6, 0.3, 0.1], top_p=0.8, temperature=0.5) == [0, 1]
    assert kept([0.6, 0.3, 0.1], top_p=0.75, temperature=0.5) == [0]


def test_mass_is_the_exponential_in_units_of_2_to_the_minus_44() -> None:
    gaps = -np.linspace(0.0, 25.0, 2001)
    assert np.allclose(mass(gaps) / 2.0**44, np.exp(gaps), rtol=1e-11, atol=2.0**-44)
    assert mass(np.array([0.0, -31.0, -1e30, -INF])).tolist() == [2**44, 0, 0, 0]
    assert [int(kernels.mass(float(gap))) for gap in gaps] == mass(gaps).tolist()


# --- the kernels against the definition


@settings(deadline=None, max_examples=300)
@given(rows_of_logits, st.lists(slot_parameters, min_size=1, max_size=6), st.sampled_from(DTYPES), st.data())
def test_the_kernels_choose_the_oracles_token(
    row: list[float], slots: list[tuple[float, float, float, int, int]], dtype: torch.dtype, data: st.DataObject
) -> None:
    columns: Any = [list(column) for column in zip(*slots, strict=True)]
    table = make_table(*columns)
    row_slots = data.draw(st.lists(st.integers(0, len(slots) - 1), min_size=1, max_size=8))
    positions = data.draw(
        st.lists(st.integers(0, 2**40), min_size=len(row_slots), max_size=len(row_slots)), label="positions"
    )
    # every row is the drawn one, turned, so that each has its maximum elsewhere
    values = torch.tensor(row, dtype=torch.float32).to(dtype)
    logits = torch.stack([values.roll(r) for r in range(len(row_slots))])
    expected = draw(logits, table, row_slots, positions, OracleSampler())
    assert draw(logits, table, row_slots, positions) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.001, 1.0, 8.0])
@pytest.mark.parametrize("vocab", [127, 128, 2049, 40_000])
def test_the_kernels_choose_the_oracles_token_in_real_vocabularies(
    vocab: int, scale: float, dtype: torch.dtype
) -> None:
    generator = np.random.default_rng(vocab)
    logits = torch.from_numpy(generator.standard_normal((24, vocab)).astype(np.float32) * scale).to(dtype)
    table = random_table(24, generator)
    assert draw(logits, table) == draw(logits, table, sampler=OracleSampler())


@pytest.mark.parametrize("top_k", [1, 300, 2000, 4999])
@pytest.mark.parametrize("top_p", [1.0, 0.5, 0.02])
def test_bf16_logits_with_many_ties_are_cut_exactly(top_k: int, top_p: float) -> None:
    generator = np.random.default_rng(3)
    logits = torch.from_numpy(generator.integers(-2, 3, (16, 5000)) * 0.25).bfloat16()
    table = make_table([1.0] * 16, top_k=top_k, top_p=top_p)
    assert draw(logits, table) == draw(logits, table, sampler=OracleSampler())


def test_a_row_that_cuts_inside_ties_draws_only_ids_in_front_of_the_cut() -> None:
    logits = torch.zeros(1, 1000).expand(2000, -1)
    for table in (make_table([1.0], top_k=10), make_table([1.0], top_p=0.01)):
        assert set(draw(logits, table, slots=[0] * 2000)) == set(range(10))


def test_a_long_tail_far_below_the_maximum_counts_and_can_be_drawn() -> None:
    """40,000 tokens at a gap of 12.5 hold 13% of the mass: top_p = 0.95 keeps more than half of them."""
    logits = torch.full((1, 40_001), -12.5)
    logits[0, 20_000] = 0.0
    rows, table = logits.expand(60, -1), make_table([1.0], top_p=0.95)
    tokens = draw(rows, table, slots=[0] * 60)
    assert tokens == draw(rows, table, slots=[0] * 60, sampler=OracleSampler())
    assert len(set(tokens)) > 1


def test_min_p_keeps_ties_that_lie_behind_the_id_where_top_k_ends() -> None:
    logits = torch.zeros(1, 500)
    logits[0, [300, 400]] = 1.0
    table = make_table([1.0], top_k=3, min_p=1.0)
    assert set(draw(logits.expand(100, -1), table, slots=[0] * 100)) == {300, 400}


def test_zeros_of_both_signs_are_equal() -> None:
    logits = torch.tensor([[-0.0, 0.0, -0.0, 0.0, 0.0]] * 200)
    assert set(draw(logits, make_table([1.0] * 200, top_k=3))) == {0, 1, 2}


# --- a token depends on nothing but its row, seed and position


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rows_token_does_not_depend_on_its_batch_or_its_place_in_it(dtype: torch.dtype) -> None:
    generator = np.random.default_rng(11)
    logits = torch.from_numpy(generator.standard_normal((40, 3000)).astype(np.float32)).to(dtype)
    table = random_table(40, generator)
    together = draw(logits, table)
    order = generator.permutation(40).tolist()
    assert draw(logits[order], table, order, order) == [together[r] for r in order]
    assert [draw(logits[r : r + 1], table, [r], [r])[0] for r in range(40)] == together


def test_threads_change_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(12)
    logits = torch.from_numpy(generator.standard_normal((33, 1000)).astype(np.float32))
    table = random_table(33, generator)
    alone = draw(logits, table)
    monkeypatch.setattr(arguments, "PARALLEL_MIN_LOGITS", 0)
    assert draw(logits, table) == alone


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_may_be_a_view_and_are_left_alone(dtype: torch.dtype) -> None:
    generator = np.random.default_rng(13)
    padded = torch.from_numpy(generator.standard_normal((9, 1100)).astype(np.float32)).to(dtype)
    before = padded.clone()
    table = random_table(9, generator)
    view = padded[1::2, 37:1037]
    assert draw(view, table) == draw(view.contiguous(), table)
    assert torch.equal(padded, before)


def test_seed_and_position_change_the_draw() -> None:
    logits = torch.zeros(64, 10_000)
    seeds = draw(logits, make_table([1.0] * 64, seed=list(range(64))), positions=[5] * 64)
    positions = draw(logits, make_table([1.0], seed=9), slots=[0] * 64)
    high_halves = draw(logits, make_table([1.0] * 64, seed=[s << 32 for s in range(64)]), positions=[5] * 64)
    far_positions = draw(logits, make_table([1.0], seed=9), slots=[0] * 64, positions=[p << 32 for p in range(64)])
    for tokens in (seeds, positions, high_halves, far_positions):
        assert len(set(tokens)) > 60
    assert seeds == draw(logits, make_table([1.0] * 64, seed=list(range(64))), positions=[5] * 64)


# --- special rows


@pytest.mark.parametrize("dtype", DTYPES)
def test_greedy_takes_the_smallest_id_among_equals(dtype: torch.dtype) -> None:
    logits = torch.full((2, 500), -3.0, dtype=dtype)
    logits[0, [77, 300, 499]] = 2.5
    logits[1, 5], logits[1, 9] = -0.0, 0.0
    assert draw(logits, make_table([0.0, 0.0])) == [77, 5]


def test_top_k_of_one_is_greedy_even_among_equals() -> None:
    logits = torch.zeros(50, 300)
    logits[:, [120, 200]] = 1.0
    assert draw(logits, make_table([2.0] * 50, top_k=1)) == [120] * 50


@pytest.mark.parametrize("parameters", [{}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_finite_maximum_still_give_a_valid_id(temperature: float, parameters: dict[str, Any]) -> None:
    logits = torch.full((4, 300), NAN)
    logits[1] = -INF
    logits[2, [40, 200]] = INF
    logits[3, 100:200] = -INF
    assert draw(logits, make_table([temperature] * 4, **parameters)) == [0, 0, 40, 0]


@pytest.mark.parametrize("parameters", [{}, {"top_p": 0.9999}, {"top_k": 200}, {"min_p": 1e-30}])
def test_masked_and_nan_logits_are_never_drawn(parameters: dict[str, Any]) -> None:
    logits = torch.full((400, 300), -INF)
    logits[:, 150:] = NAN
    allowed = {3, 130, 131, 299}
    logits[:, list(allowed)] = -5.0
    assert set(draw(logits, make_table([2.0] * 400, **parameters))) == allowed


def test_wrong_shapes_are_refused() -> None:
    table = make_table([0.0])
    with pytest.raises(ValueError, match="expected rows of 100"):
        draw(torch.zeros(1, 99), table, sampler=CpuSampler(100))
    with pytest.raises(ValueError, match="strides"):
        draw(torch.zeros(100, 2).T, table, slots=[0, 0], sampler=CpuSampler(100))
    with pytest.raises(ValueError, match="vocabulary"):
        CpuSampler(cpu.MAX_VOCAB + 1)


def test_an_empty_batch_is_no_work() -> None:
    assert draw(torch.zeros(0, 50), make_table([0.0])) == []


# --- the distribution

SMALL = np.array([2.0, 1.0, 0.5, 0.0, 0.0, -0.5, -1.0, -2.0, -3.0, 1.5], dtype=np.float32)
NUM_DRAWS = 200_000


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vary", ["position", "seed"])
@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.3, "top_k": 6},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 1.0, "top_p": 0.9, "min_p": 0.2},
        {"temperature": 1.7, "top_p": 0.85, "top_k": 7},
    ],
)
def test_tokens_follow_the_softmax_of_what_is_kept(parameters: dict[str, Any], vary: str, dtype: torch.dtype) -> None:
    settings_ = {"top_p": 1.0, "min_p": 0.0, "top_k": 0, **parameters}
    ids = kept_tokens(SMALL, **settings_)
    weights = np.zeros(len(SMALL))
    weights[ids] = np.exp(SMALL[ids].astype(np.float64) / parameters["temperature"])
    expected = weights / weights.sum() * NUM_DRAWS

    temperature, filters = [parameters["temperature"]], {k: v for k, v in parameters.items() if k != "temperature"}
    logits = torch.from_numpy(SMALL).to(dtype).expand(NUM_DRAWS, -1)
    if vary == "position":
        tokens = draw(logits, make_table(temperature, seed=42, **filters), slots=[0] * NUM_DRAWS)
    else:
        table = make_table(temperature * NUM_DRAWS, seed=list(range(NUM_DRAWS)), **filters)
        tokens = draw(logits, table, positions=[7] * NUM_DRAWS)
    counts = np.bincount(tokens, minlength=len(SMALL))
    assert counts[weights == 0.0].sum() == 0
    chi_square = float(np.sum((counts[ids] - expected[ids]) ** 2 / expected[ids]))
    assert chi_square < len(ids) - 1 + 4 * math.sqrt(2 * len(ids))


def test_consecutive_tokens_of_a_request_are_independent() -> None:
    logits = torch.zeros(1, 8).expand(NUM_DRAWS, -1)
    tokens = np.array(draw(logits, make_table([1.0], seed=77), slots=[0] * NUM_DRAWS))
    pairs = np.bincount(tokens[:-1] * 8 + tokens[1:], minlength=64)
    expected = (NUM_DRAWS - 1) / 64
    assert abs(float(np.sum((pairs - expected) ** 2) / expected) - 63) < 4 * math.sqrt(2 * 63)


def test_a_large_vocabulary_is_sampled_in_proportion() -> None:
    """Logits in ten levels over 20,000 tokens: each level is drawn as often as its share of the mass says."""
    levels = np.arange(20_000) % 10
    logits = torch.from_numpy((levels * 0.5).astype(np.float32)).expand(20_000, -1)
    tokens = np.array(draw(logits, make_table([1.0], seed=5), slots=[0] * 20_000))
    shares = np.exp(np.arange(10) * 0.5)
    expected = shares / shares.sum() * len(tokens)
    counts = np.bincount(levels[tokens], minlength=10)
    assert float(np.sum((counts - expected) ** 2 / expected)) < 9 + 4 * math.sqrt(2 * 9)
    # and evenly over the ids: halves of the vocabulary, within four standard deviations
    assert abs(np.mean(tokens < 10_000) - 0.5) < 4 * 0.5 / math.sqrt(len(tokens))
