"""Sampling on t ranks: the oracle's token in every mode, equal log-probabilities, and what moves between ranks."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sampling_batches import DTYPES, INF, NAN, draw, make_table, random_table, rows_of_logits, slot_parameters
from sharded_logits import MODES, on_ranks, sample_on_ranks, sampling_slice

from albireo.config import SamplingMode
from albireo.gpu_worker.sampling import arguments, local
from albireo.gpu_worker.sampling.adjust import Adjuster
from albireo.gpu_worker.sampling.interface import StepSampler
from albireo.gpu_worker.sampling.local_kernels import RECORD_BYTES
from albireo.gpu_worker.sampling.oracle import OracleSampler
from albireo.gpu_worker.sampling.table import SamplingTable
from albireo.limits import MAX_LOCAL_TOP_K

SIZES = (1, 2, 3, 4, 8)


def tokens_of(
    mode: SamplingMode,
    size: int,
    logits: torch.Tensor,
    table: SamplingTable,
    slots: list[int] | None = None,
    positions: list[int] | None = None,
    spare_slice: int = 0,
) -> list[int]:
    """The tokens that all ranks agree on; slot and position r for row r unless told otherwise."""
    rows = list(range(len(logits)))
    slot_array = np.array(rows if slots is None else slots, np.int32)
    position_array = np.array(rows if positions is None else positions, np.int64)
    sampled, _ = sample_on_ranks(mode, size, logits, table, slot_array, position_array, spare_slice)
    tokens: list[int] = sampled.tokens.tolist()
    return tokens


def random_logits(n_rows: int, vocab: int, scale: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = np.random.default_rng(vocab)
    return torch.from_numpy(generator.standard_normal((n_rows, vocab)).astype(np.float32) * scale).to(dtype)


# --- the token


@settings(deadline=None, max_examples=250)
@given(
    rows_of_logits,
    st.lists(slot_parameters, min_size=1, max_size=6),
    st.sampled_from(DTYPES),
    st.sampled_from(MODES),
    st.sampled_from(SIZES),
    st.data(),
)
def test_every_mode_chooses_the_oracles_token(
    row: list[float],
    slots: list[tuple[float, float, float, int, int]],
    dtype: torch.dtype,
    mode: SamplingMode,
    size: int,
    data: st.DataObject,
) -> None:
    columns: Any = [list(column) for column in zip(*slots, strict=True)]
    table = make_table(*columns)
    row_slots = data.draw(st.lists(st.integers(0, len(slots) - 1), min_size=1, max_size=8))
    n_rows = len(row_slots)
    positions = data.draw(st.lists(st.integers(0, 2**40), min_size=n_rows, max_size=n_rows), label="positions")
    spare_slice = data.draw(st.integers(0, 2), label="spare_slice")
    # every row is the drawn one, turned, so that each has its maximum elsewhere, and so in another share
    values = torch.tensor(row, dtype=torch.float32).to(dtype)
    logits = torch.stack([values.roll(97 * r) for r in range(n_rows)])
    expected = draw(logits, table, row_slots, positions, OracleSampler())
    assert tokens_of(mode, size, logits, table, row_slots, positions, spare_slice) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.001, 1.0, 8.0])
@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_chooses_the_oracles_token_in_larger_vocabularies(
    mode: SamplingMode, size: int, scale: float, dtype: torch.dtype
) -> None:
    logits = random_logits(32, 20_001, scale, dtype)
    table = random_table(32, np.random.default_rng(size))
    assert tokens_of(mode, size, logits, table) == draw(logits, table, sampler=OracleSampler())


@pytest.mark.parametrize("top_k", [1, 100, MAX_LOCAL_TOP_K, MAX_LOCAL_TOP_K + 1, 4999])
@pytest.mark.parametrize("top_p", [1.0, 0.5, 0.02])
@pytest.mark.parametrize("mode", MODES)
def test_ties_across_shares_are_cut_exactly(mode: SamplingMode, top_p: float, top_k: int) -> None:
    generator = np.random.default_rng(3)
    logits = torch.from_numpy(generator.integers(-2, 3, (16, 5000)) * 0.25).bfloat16()
    for min_p in (0.0, 0.8):
        table = make_table([1.0] * 16, top_k=top_k, top_p=top_p, min_p=min_p)
        assert tokens_of(mode, 4, logits, table) == draw(logits, table, sampler=OracleSampler())


@pytest.mark.parametrize("mode", MODES)
def test_shares_without_a_real_column_stay_out_of_it(mode: SamplingMode) -> None:
    logits = random_logits(40, 200, 1.0)
    table = random_table(40, np.random.default_rng(5))
    assert tokens_of(mode, 8, logits, table) == draw(logits, table, sampler=OracleSampler())


@pytest.mark.parametrize("parameters", [{}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("mode", MODES)
def test_rows_without_a_finite_maximum_give_the_first_that_has_it(
    mode: SamplingMode, temperature: float, parameters: dict[str, Any]
) -> None:
    logits = torch.full((5, 700), NAN)
    logits[1] = -INF
    logits[2, [340, 600]] = INF
    logits[3, 100:500] = -INF
    logits[4, :400] = 1.0
    logits[4, 500] = INF
    assert tokens_of(mode, 4, logits, make_table([temperature] * 5, **parameters)) == [0, 0, 340, 0, 500]


@pytest.mark.parametrize("mode", MODES)
def test_a_nucleus_of_a_few_among_many_is_found(mode: SamplingMode) -> None:
    """top_p = 0.02 of nearly flat rows: most draws fall outside and are repeated among the tokens in front."""
    logits = random_logits(48, 3000, 0.3)
    table = make_table([1.0] * 48, top_p=0.02, min_p=[0.0, 0.05] * 24)
    assert tokens_of(mode, 4, logits, table) == draw(logits, table, sampler=OracleSampler())


@pytest.mark.parametrize("mode", MODES)
def test_logits_may_be_a_view(mode: SamplingMode) -> None:
    logits = random_logits(10, 900, 2.0)
    table = random_table(10, np.random.default_rng(6))
    slots, positions = np.arange(10, dtype=np.int32), np.arange(10, dtype=np.int64)
    num_rows = sampling_slice(mode, 3, slots, table)

    def sample(sampler: StepSampler, share: torch.Tensor) -> list[int]:
        wider = torch.full((20, share.shape[1] + 50), 1e30)
        wider[::2, 17 : 17 + share.shape[1]] = share
        view = wider[::2, 17 : 17 + share.shape[1]]
        tokens: list[int] = sampler.sample(view, slots, positions, num_rows).tokens.tolist()
        return tokens

    expected = draw(logits, table, sampler=OracleSampler())
    assert [tokens for tokens, _ in on_ranks(mode, 3, logits, table, sample)] == [expected] * 3


@pytest.mark.parametrize("mode", MODES)
def test_a_sampler_is_good_for_batches_of_every_size_in_turn(mode: SamplingMode) -> None:
    logits = random_logits(70, 1500, 2.0)
    table = random_table(70, np.random.default_rng(7))
    expected = draw(logits, table, sampler=OracleSampler())

    def sample(sampler: StepSampler, share: torch.Tensor) -> None:
        for n_rows in (3, 70, 0, 1, 33):
            slots, positions = np.arange(n_rows, dtype=np.int32), np.arange(n_rows, dtype=np.int64)
            num_rows = sampling_slice(mode, 4, slots, table)
            sampled = sampler.sample(share[:n_rows], slots, positions, num_rows)
            assert sampled.tokens.tolist() == expected[:n_rows]
            assert len(sampled.logprobs) == 0

    on_ranks(mode, 4, logits, table, sample)


@pytest.mark.parametrize("mode", MODES)
def test_threads_change_no_token(mode: SamplingMode, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(60, 1500, 2.0)
    table = random_table(60, np.random.default_rng(8))
    monkeypatch.setattr(arguments, "PARALLEL_MIN_LOGITS", 0)
    monkeypatch.setattr(local, "PARALLEL_MIN_CANDIDATES", 0)
    assert tokens_of(mode, 4, logits, table) == draw(logits, table, sampler=OracleSampler())


@pytest.mark.parametrize("mode", ["sequence-parallel", "local"])
def test_rows_that_the_plan_has_no_slice_for_are_refused(mode: SamplingMode) -> None:
    table, slots = make_table([1.0] * 4, top_k=MAX_LOCAL_TOP_K + 1), np.arange(4, dtype=np.int32)

    def sample(sampler: StepSampler, share: torch.Tensor) -> None:
        sampler.sample(share, slots, slots.astype(np.int64), 0)

    with pytest.raises(AssertionError):
        on_ranks(mode, 2, random_logits(4, 500, 1.0), table, sample)


# --- adjusted rows


def penalise(table: SamplingTable, generator: np.random.Generator, vocab: int) -> None:
    """Two slots in three get penalties, a bias, or a minimum of tokens."""
    for slot in range(len(table.temperature)):
        if slot % 3 == 0:
            continue
        table.is_special[slot] = table.has_penalties[slot] = True
        table.repetition_penalty[slot] = generator.uniform(0.7, 1.6)
        table.presence_penalty[slot] = generator.uniform(-1.0, 1.0)
        table.frequency_penalty[slot] = generator.uniform(-0.5, 0.5)
        seen = generator.choice(vocab, 50, replace=False)
        table.seen_ids[slot, :50], table.seen_counts[slot, :50] = seen, generator.integers(1, 8, 50)
        table.num_seen[slot] = 50
        table.bias_ids[slot, :20] = generator.choice(vocab, 20, replace=False)
        table.bias_values[slot, :20] = generator.uniform(-5, 5, 20)
        table.num_bias[slot] = 20
        table.stop_ids[slot, :4], table.num_eos_ids[slot] = generator.choice(vocab, 4, replace=False), 4
        table.min_position[slot] = generator.integers(0, 60)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_adjusted_rows_give_the_oracles_token(mode: SamplingMode, size: int, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(21)
    logits = random_logits(36, 1000, 2.0, dtype)
    plain, table = random_table(36, generator), SamplingTable(36, 100)
    for name in ("temperature", "top_p", "min_p", "top_k", "seed"):
        getattr(table, name)[:] = getattr(plain, name)
    penalise(table, generator, 1000)
    rows = np.arange(36)
    adjusted = Adjuster(0, 1000).adjust(logits, rows.astype(np.int32), rows.astype(np.int64), table)
    expected = draw(logits, table, sampler=OracleSampler(), adjusted=adjusted)
    assert tokens_of(mode, size, logits, table) == expected


# --- log-probabilities


@pytest.mark.parametrize("dtype", DTYPES)
def test_logprobs_are_equal_in_every_mode_for_every_number_of_ranks(dtype: torch.dtype) -> None:
    logits = random_logits(21, 1300, 3.0, dtype)
    table = random_table(21, np.random.default_rng(8))
    table.num_logprobs[:] = [-1, 0, 5, 20] * 5 + [3]
    slots, positions = np.arange(21, dtype=np.int32), np.arange(21, dtype=np.int64)
    expected, _ = sample_on_ranks("gathered", 1, logits, table, slots, positions)
    assert expected.logprobs["token"].tolist() == expected.tokens[table.num_logprobs >= 0].tolist()
    assert expected.logprobs["num_top"].tolist() == table.num_logprobs[table.num_logprobs >= 0].tolist()
    for mode in MODES:
        for size in SIZES:
            sampled, _ = sample_on_ranks(mode, size, logits, table, slots, positions, spare_slice=1)
            assert np.array_equal(sampled.logprobs, expected.logprobs)


def test_scores_of_given_tokens_are_equal_in_every_mode_for_every_number_of_ranks() -> None:
    logits = random_logits(17, 1300, 3.0)
    table = SamplingTable(1, 1)
    targets = np.arange(17, dtype=np.int32) * 76
    num_top = np.array([0, 5, 20, 1] * 4 + [0], np.int32)

    def score(sampler: StepSampler, share: torch.Tensor) -> NDArray[Any]:
        return sampler.score(share, targets, num_top)

    (expected, _), *_ = on_ranks("gathered", 1, logits, table, score)
    assert expected["token"].tolist() == targets.tolist()
    for mode in MODES:
        for size in SIZES:
            for scores, _ in on_ranks(mode, size, logits, table, score):
                assert np.array_equal(scores, expected)


# --- what moves


def received(mode: SamplingMode, size: int, logits: torch.Tensor, table: SamplingTable, spare_slice: int = 0) -> int:
    """Bytes per rank of one step."""
    slots, positions = np.arange(len(logits), dtype=np.int32), np.arange(len(logits), dtype=np.int64)
    return sample_on_ranks(mode, size, logits, table, slots, positions, spare_slice)[1]


def test_nothing_moves_on_one_rank() -> None:
    table = random_table(9, np.random.default_rng(1))
    table.num_logprobs[:] = 2
    assert [received(mode, 1, random_logits(9, 500, 1.0), table) for mode in MODES] == [0, 0, 0]


def test_local_rows_move_a_record_each_whatever_the_vocabulary() -> None:
    for temperature in (0.0, 0.8):
        table = make_table([temperature] * 12)
        for vocab in (1000, 20_000):
            assert received("local", 4, random_logits(12, vocab, 1.0), table) == 3 * 12 * RECORD_BYTES


def test_local_rows_under_top_k_move_their_candidates() -> None:
    table = make_table([0.8] * 12, top_k=[0, 50, 7, 0] * 3, top_p=[1.0, 0.9, 0.9, 1.0] * 3)
    expected = 3 * (12 * RECORD_BYTES + 6 * 50 * 8)
    assert received("local", 4, random_logits(12, 20_000, 1.0), table) == expected


def test_sequence_parallel_rows_move_a_rank_s_slice() -> None:
    table, logits = make_table([0.8] * 12, top_p=0.9), random_logits(12, 1024, 1.0)
    assert received("sequence-parallel", 4, logits, table) == 3 * (3 * 256 * 4 + 3 * 4)
    assert received("sequence-parallel", 4, logits.bfloat16(), table) == 3 * (3 * 256 * 2 + 3 * 4)
    assert received("gathered", 4, logits, table) == 3 * 12 * 256 * 4


def test_what_sequence_parallel_ranks_exchange_depends_on_the_planned_slice_alone() -> None:
    logits = random_logits(12, 1024, 1.0)
    whole = received("sequence-parallel", 4, logits, make_table([0.8] * 12, top_p=0.9))
    # 5 of 12 planned rows are still alive
    assert received("sequence-parallel", 4, logits[:5] * 9.0, make_table([0.0] * 5), spare_slice=1) == whole


def test_rows_with_a_large_top_k_take_the_sequence_parallel_path_alone() -> None:
    logits = random_logits(12, 1024, 1.0)
    table = make_table([0.8] * 12, top_k=[0, 200, 5] * 4)
    candidates = 4 * 5 * 8
    assert received("local", 4, logits, table) == 3 * (1 * 256 * 4 + 4 + 8 * RECORD_BYTES + candidates)
    assert tokens_of("local", 4, logits, table) == draw(logits, table, sampler=OracleSampler())


@pytest.mark.parametrize("top_p", [0.95, 0.5, 0.1])
def test_top_p_rows_take_as_many_exchanges_as_expected(top_p: float) -> None:
    """One draw and one weighing, repeated 1 + ln(1 / top_p) times in the mean, for whatever logits."""
    table = make_table([1.0], top_p=top_p)
    slots = np.zeros(1, np.int32)

    def sample(sampler: StepSampler, share: torch.Tensor) -> None:
        for position in range(200):
            sampler.sample(share, slots, np.array([position], np.int64), 0)

    _, received_bytes = on_ranks("local", 4, random_logits(1, 5000, 1.0), table, sample)[0]
    pairs = received_bytes / (3 * RECORD_BYTES) / 200 / 2
    # 15% for exact totals now and then; four standard deviations of the mean of 200 Poisson numbers
    expected = 1.0 + math.log(1.0 / top_p)
    assert pairs < 1.15 * expected + 4 * math.sqrt((expected - 1.0) / 200)
