"""Penalties, bias, bad words and min_tokens: against the definition, OpenAI's formula and transformers' processors."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from admitted import MAX_MODEL_LEN, VOCAB, admit, position_of, requests
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from albireo.gpu_worker.sampling import arguments
from albireo.gpu_worker.sampling.adjust import Adjuster
from albireo.gpu_worker.sampling.adjust_oracle import Adjustments, adjust_row
from albireo.gpu_worker.sampling.table import SamplingTable
from albireo.shm.grammar_masks import mask_words

DTYPES = (torch.float32, torch.bfloat16)
special_logits = st.sampled_from([0.0, -0.0, 3e38, -3e38, 1e-40, math.inf, -math.inf, math.nan])


def adjusted(logits: torch.Tensor, batch: list[Adjustments], start: int = 0, size: int = VOCAB) -> NDArray[np.float32]:
    """All rows, those that need no adjusting as they are: float32 [n_rows, size]. Row r is slot r's."""
    table = SamplingTable(len(batch), MAX_MODEL_LEN)
    admit(table, dict(enumerate(batch)))
    share = torch.full((len(batch), size + 5), 7.0, dtype=logits.dtype)
    share[:, :size] = logits[:, start : start + size]
    slots, positions = np.arange(len(batch), dtype=np.int32), np.array([position_of(r) for r in batch])
    return outcome(Adjuster(start, size), share, slots, positions, table)[:, :size]


def outcome(
    adjuster: Adjuster,
    logits: torch.Tensor,
    slots: NDArray[np.int32],
    positions: NDArray[np.int64],
    table: SamplingTable,
) -> NDArray[np.float32]:
    values = logits.float().numpy().copy()
    rows = adjuster.adjust(logits, slots, positions, table)
    if rows is not None:
        assert rows.index.shape == slots.shape
        for r in np.flatnonzero(rows.index >= 0):
            values[r, : rows.values.shape[1]] = rows.values[rows.index[r]]
    return values


def same(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Bit for bit, but for the payload of NaNs and the sign of zeros, which count as equal everywhere."""
    x, y = ((np.where(np.isnan(each), np.float32(0), each) + np.float32(0)).view(np.int32) for each in (a, b))
    return bool(np.array_equal(np.isnan(a), np.isnan(b)) and np.array_equal(x, y))


@st.composite
def batches(draw: Any) -> tuple[torch.Tensor, list[Adjustments]]:
    batch = draw(st.lists(requests, min_size=1, max_size=5))
    logits = np.random.default_rng(draw(st.integers(0, 2**32))).standard_normal((len(batch), VOCAB)) * 5
    for i in draw(st.lists(st.integers(0, 9), max_size=5)):
        logits[:, i] = draw(special_logits)
    return torch.from_numpy(logits).to(draw(st.sampled_from(DTYPES))), batch


# --- the definition


@settings(deadline=None, max_examples=100)
@given(
    batches(),
    st.integers(0, VOCAB - 1),
    st.integers(1, VOCAB),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_only_what_a_grammar_allows_is_left(
    drawn: tuple[torch.Tensor, list[Adjustments]], start: int, size: int, seed: int, share: float
) -> None:
    logits, batch = drawn
    size = min(size, VOCAB - start)
    generator = np.random.default_rng(seed)
    bits = np.zeros((len(batch), mask_words(VOCAB) * 32), np.bool_)
    bits[:, :VOCAB] = generator.random((len(batch), VOCAB)) < share
    bits[:, 32:64] = generator.random() < 0.5
    masks = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    table = SamplingTable(len(batch), MAX_MODEL_LEN, masks)
    admit(table, dict(enumerate(batch)))
    has_grammar = generator.random(len(batch)) < 0.7
    table.has_grammar[:] = has_grammar
    table.is_special |= has_grammar
    slots, positions = np.arange(len(batch), dtype=np.int32), np.array([position_of(r) for r in batch])
    got = outcome(Adjuster(start, size), logits[:, start : start + size].contiguous(), slots, positions, table)
    for row, request in enumerate(batch):
        allowed = set(np.flatnonzero(bits[row]).tolist()) if has_grammar[row] else None
        constrained = replace(request, allowed=allowed)
        assert same(got[row], adjust_row(logits[row].float().numpy(), constrained)[start : start + size])


@settings(deadline=None, max_examples=200)
@given(batches())
def test_rows_of_every_kind_are_adjusted_as_defined(drawn: tuple[torch.Tensor, list[Adjustments]]) -> None:
    logits, batch = drawn
    expected = np.stack([adjust_row(logits[r].float().numpy(), request) for r, request in enumerate(batch)])
    assert same(adjusted(logits, batch), expected)


@settings(deadline=None, max_examples=100)
@given(batches(), st.sampled_from([(0, 128, 300), (0, 128, 256, 300), (0, 128, 256, 300, 300), (0, 256, 300)]))
def test_shares_put_together_are_the_whole(
    drawn: tuple[torch.Tensor, list[Adjustments]], cuts: tuple[int, ...]
) -> None:
    logits, batch = drawn
    parts = [adjusted(logits, batch, start, end - start) for start, end in pairwise(cuts)]
    assert same(np.concatenate(parts, axis=1), adjusted(logits, batch))


def test_a_word_is_ruled_out_only_behind_its_beginning() -> None:
    request = Adjustments(output=[1, 2, 3], bad_words=[[9], [3, 10], [2, 11], [2, 3, 12], [0, 1, 2, 3, 13]])
    row = adjusted(torch.zeros(1, VOCAB), [request])[0]
    assert np.flatnonzero(np.isneginf(row)).tolist() == [9, 10, 12]


def test_the_prompt_does_not_begin_a_bad_word() -> None:
    row = adjusted(torch.zeros(1, VOCAB), [Adjustments(prompt=[1], bad_words=[[1, 2]])])[0]
    assert not np.isneginf(row).any()


def test_stop_ids_are_ruled_out_until_min_tokens_are_there() -> None:
    batch = [Adjustments(prompt=[1, 2], output=[3] * n, min_tokens=2, stop_ids=[7, 8]) for n in range(4)]
    rows = adjusted(torch.zeros(4, VOCAB), batch)
    assert [np.flatnonzero(np.isneginf(row)).tolist() for row in rows] == [[7, 8], [7, 8], [], []]


def test_a_bias_cannot_bring_back_what_is_ruled_out() -> None:
    request = Adjustments(bad_words=[[4]], min_tokens=1, stop_ids=[5], logit_bias={4: 100.0, 5: 100.0, 6: 100.0})
    assert adjusted(torch.zeros(1, VOCAB), [request])[0, 4:7].tolist() == [-math.inf, -math.inf, 100.0]


def test_presence_and_frequency_follow_openais_formula() -> None:
    """mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence; the prompt does not count."""
    mu = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1))
    output = [5, 6, 6, 7, 7, 7]
    request = Adjustments(prompt=[8, 7], output=output, frequency_penalty=0.7, presence_penalty=-1.1)
    counts = np.bincount(output, minlength=VOCAB)
    expected = mu[0].numpy() - counts * 0.7 - (counts > 0) * -1.1
    np.testing.assert_allclose(adjusted(mu, [request])[0], expected, rtol=1e-6, atol=1e-6)


# --- transformers' processors, where the definitions agree


def processed(processor: Any, logits: torch.Tensor, ids: list[int]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = processor(torch.tensor([ids]), logits.clone()).numpy()
    return result


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(2))
    request = Adjustments(prompt=[1, 2, 2, 250], output=[3, 3], repetition_penalty=penalty)
    expected = processed(RepetitionPenaltyLogitsProcessor(penalty), logits, [1, 2, 2, 250, 3, 3])
    np.testing.assert_allclose(adjusted(logits, [request]), expected, rtol=1e-6)


def test_bad_words_are_those_of_transformers() -> None:
    from transformers import NoBadWordsLogitsProcessor

    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(3))
    words, output = [[5], [3, 4], [2, 3, 6], [1, 3, 7], [9, 1, 2, 3, 8]], [0, 1, 2, 3]
    expected = processed(NoBadWordsLogitsProcessor(words), logits, output)
    assert same(adjusted(logits, [Adjustments(output=output, bad_words=words)]), expected)


@pytest.mark.parametrize("num_output", [0, 2, 3, 4])
def test_min_tokens_is_that_of_transformers(num_output: int) -> None:
    from transformers import MinNewTokensLengthLogitsProcessor

    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(4))
    processor = MinNewTokensLengthLogitsProcessor(2, 3, eos_token_id=[7, 8])
    request = Adjustments(prompt=[1, 2], output=[5] * num_output, min_tokens=3, stop_ids=[7, 8])
    expected = processed(processor, logits, [1, 2] + [5] * num_output)
    assert same(adjusted(logits, [request]), expected)


def test_a_bias_is_the_sequence_bias_of_transformers() -> None:
    from transformers import SequenceBiasLogitsProcessor

    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(5))
    processor = SequenceBiasLogitsProcessor([[[3], -1.5], [[200], 12.0]])
    expected = processed(processor, logits, [1, 2])
    assert same(adjusted(logits, [Adjustments(prompt=[1, 2], logit_bias={3: -1.5, 200: 12.0})]), expected)


# --- the batch


def test_a_batch_that_asks_for_nothing_special_is_not_touched() -> None:
    table = SamplingTable(3, MAX_MODEL_LEN)
    admit(table, {r: Adjustments(prompt=[1], output=[1, 1], stop_ids=[2], min_tokens=2) for r in range(3)})
    slots, positions = np.arange(3, dtype=np.int32), np.full(3, 3)
    assert Adjuster(0, VOCAB).adjust(torch.zeros(3, VOCAB), slots, positions, table) is None


def test_only_rows_that_need_it_are_copied_and_the_logits_stay() -> None:
    table = SamplingTable(4, MAX_MODEL_LEN)
    admit(table, {1: Adjustments(logit_bias={0: 1.0}), 3: Adjustments(logit_bias={0: 2.0})})
    logits = torch.zeros(4, VOCAB)
    slots = np.array([3, 0, 1, 2], np.int32)
    rows = Adjuster(0, VOCAB).adjust(logits, slots, np.full(4, 5), table)
    assert rows is not None
    assert rows.index.tolist() == [0, -1, 1, -1]
    assert rows.values.shape == (2, VOCAB)
    assert rows.values[:, 0].tolist() == [2.0, 1.0]
    assert not logits.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_adjusters_memory_carries_nothing_from_step_to_step(dtype: torch.dtype) -> None:
    generator = np.random.default_rng(6)
    table = SamplingTable(8, MAX_MODEL_LEN)
    admit(table, {slot: Adjustments(logit_bias={slot: 50.0}) for slot in range(0, 8, 2)})
    adjuster = Adjuster(0, VOCAB)
    for num_rows in (3, 8, 1, 5, 8):
        slots = generator.permutation(8)[:num_rows].astype(np.int32)
        logits = torch.from_numpy(generator.standard_normal((num_rows, VOCAB))).to(dtype)
        positions = np.zeros(num_rows, np.int64)
        fresh = outcome(Adjuster(0, VOCAB), logits, slots, positions, table)
        assert same(outcome(adjuster, logits, slots, positions, table), fresh)


def test_one_adjuster_follows_whatever_table_it_is_given() -> None:
    adjuster, zeros = Adjuster(0, VOCAB), torch.zeros(1, VOCAB)
    for bias in (1.0, 2.0):
        table = SamplingTable(1, MAX_MODEL_LEN)
        admit(table, {0: Adjustments(logit_bias={3: bias})})
        assert outcome(adjuster, zeros, np.zeros(1, np.int32), np.zeros(1, np.int64), table)[0, 3] == bias


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_and_threads_change_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    padded = torch.randn(20, 400, generator=torch.Generator().manual_seed(7)).to(dtype)
    batch = [Adjustments(prompt=[r, 2], output=[3], repetition_penalty=1.5, logit_bias={r: 9.0}) for r in range(10)]
    table = SamplingTable(10, MAX_MODEL_LEN)
    admit(table, dict(enumerate(batch)))
    slots, positions = np.arange(10, dtype=np.int32), np.full(10, 3)
    view = padded[1::2, 37 : 37 + VOCAB]
    alone = outcome(Adjuster(0, VOCAB), view.contiguous(), slots, positions, table)
    monkeypatch.setattr(arguments, "PARALLEL_MIN_LOGITS", 0)
    assert same(outcome(Adjuster(0, VOCAB), view, slots, positions, table), alone)
