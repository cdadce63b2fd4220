"""Log-probabilities and ranks of tokens: against the definition and torch, on any number of ranks."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from thread_group import run_ranks

from albireo.gpu_worker.collectives.interface import Alone, Collectives
from albireo.gpu_worker.sampling import adjust_oracle, arguments, logprobs
from albireo.gpu_worker.sampling.logprobs import LogprobScorer
from albireo.limits import MAX_LOGPROBS
from albireo.shm.layout import LOGPROB

INF, NAN = math.inf, math.nan
DTYPES = (torch.float32, torch.bfloat16)


def score(
    logits: torch.Tensor, targets: list[int], num_top: list[int] | int = 0, scorer: LogprobScorer | None = None
) -> NDArray[Any]:
    tops = np.broadcast_to(np.array(num_top, np.int32), len(targets))
    scorer = scorer or LogprobScorer(0, logits.shape[1], Alone())
    return scorer.score(logits, np.array(targets, np.int32), tops)


def score_on_ranks(size: int, logits: torch.Tensor, targets: list[int], num_top: list[int]) -> NDArray[Any]:
    """By ranks with shares of a multiple of 128 tokens, padded with what would win: the last may be short or empty."""
    vocab = logits.shape[1]
    width = -(-vocab // size // 128) * 128

    def run(collectives: Collectives) -> NDArray[Any]:
        start, end = min(vocab, collectives.rank * width), min(vocab, (collectives.rank + 1) * width)
        share = torch.full((len(logits), width), 1e30, dtype=logits.dtype)
        share[:, : end - start] = logits[:, start:end]
        return score(share, targets, num_top, LogprobScorer(start, end - start, collectives))

    results = run_ranks(size, run)
    assert all(result.tobytes() == results[0].tobytes() for result in results)
    return results[0]


def expected_records(logits: torch.Tensor, targets: list[int], num_top: list[int]) -> NDArray[Any]:
    records = np.zeros(len(targets), LOGPROB)
    for r, (record, token, count) in enumerate(zip(records, targets, num_top, strict=True)):
        row = logits[r].float().numpy()
        all_logprobs, best = adjust_oracle.logprobs(row), adjust_oracle.most_likely(row, count)
        record["token"], record["logprob"], record["rank"] = token, all_logprobs[token], adjust_oracle.rank(row, token)
        record["num_top"] = len(best)
        record["top_ids"] = -1
        record["top_ids"][: len(best)] = best
        record["top_logprobs"][: len(best)] = all_logprobs[best]
    return records


special = st.sampled_from([0.0, -0.0, 1.0, -1.0, 7.5, -80.0, 3e38, -3e38, INF, -INF, NAN])


@st.composite
def scored_rows(draw: Any) -> tuple[torch.Tensor, list[int], list[int]]:
    num_rows, vocab = draw(st.integers(1, 4)), draw(st.one_of(st.integers(1, 600), st.just(128)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = generator.standard_normal((num_rows, vocab)) * draw(st.sampled_from([0.0, 0.01, 1.0, 12.0]))
    changed = draw(st.lists(st.tuples(st.integers(0, num_rows - 1), st.integers(0, vocab - 1), special), max_size=8))
    for r, i, value in changed:
        logits[r, i] = value
    if draw(st.booleans()):
        logits[0] = draw(special)
    targets = draw(st.lists(st.integers(0, vocab - 1), min_size=num_rows, max_size=num_rows))
    num_top = draw(st.lists(st.integers(0, MAX_LOGPROBS), min_size=num_rows, max_size=num_rows))
    return torch.from_numpy(logits).to(draw(st.sampled_from(DTYPES))), targets, num_top


@settings(deadline=None, max_examples=200)
@given(scored_rows())
def test_records_are_the_oracles(drawn: tuple[torch.Tensor, list[int], list[int]]) -> None:
    records, expected = score(*drawn), expected_records(*drawn)
    for name in LOGPROB.names or ():
        if name in ("logprob", "top_logprobs"):
            np.testing.assert_array_max_ulp(records[name], expected[name], maxulp=1)
        else:
            assert records[name].tolist() == expected[name].tolist()


@settings(deadline=None, max_examples=60)
@given(scored_rows(), st.integers(2, 4))
def test_any_number_of_ranks_gives_the_same_bits(drawn: tuple[torch.Tensor, list[int], list[int]], size: int) -> None:
    assert score_on_ranks(size, *drawn).tobytes() == score(*drawn).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_large_vocabulary_is_scored_like_torchs_log_softmax(size: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(6, 50_000, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    targets, num_top = [0, 49_999, 12_544, 25_088, 37_632, 7], [0, 1, 5, 20, 20, 3]
    records = score_on_ranks(size, logits, targets, num_top)
    expected = torch.log_softmax(logits.double(), dim=1)
    np.testing.assert_allclose(records["logprob"], expected[range(6), targets], rtol=1e-6)
    for record, row, count in zip(records, expected, num_top, strict=True):
        np.testing.assert_allclose(record["top_logprobs"][:count], row.topk(count).values, rtol=1e-6)
        assert record["rank"] == 1 + int((row > row[record["token"]]).sum())


def test_probabilities_that_can_be_computed_by_hand() -> None:
    probabilities = np.array([0.1, 0.2, 0.3, 0.4])
    logits = torch.from_numpy(np.log(probabilities) + 5).float().expand(4, -1)
    records = score(logits, [0, 1, 2, 3], 2)
    np.testing.assert_allclose(np.exp(records["logprob"]), probabilities, rtol=1e-6)
    assert records["rank"].tolist() == [4, 3, 2, 1]
    assert records["top_ids"][:, :3].tolist() == [[3, 2, -1]] * 4


def test_equals_stand_by_rising_id_and_share_a_rank() -> None:
    logits = torch.zeros(1, 500)
    logits[0, [130, 400]] = 1.0
    for size in (1, 3):
        record = score_on_ranks(size, logits, [400], [5])[0]
        assert record["top_ids"][:5].tolist() == [130, 400, 0, 1, 2]
        assert record["rank"] == 1
        assert score_on_ranks(size, logits, [499], [0])["rank"] == 3


def test_more_likely_tokens_than_the_vocabulary_has_are_its_size() -> None:
    record = score(torch.tensor([[1.0, 3.0, 2.0]]), [0], MAX_LOGPROBS)[0]
    assert record["num_top"] == 3
    assert record["top_ids"].tolist() == [1, 2, 0] + [-1] * (MAX_LOGPROBS - 3)
    assert record["top_logprobs"][3:].tolist() == [0.0] * (MAX_LOGPROBS - 3)


@pytest.mark.parametrize("size", [1, 2])
def test_rows_without_a_finite_maximum_have_defined_logprobs(size: int) -> None:
    logits = torch.full((3, 300), -INF)
    logits[1] = NAN
    logits[2, [5, 200]] = INF
    records = score_on_ranks(size, logits, [7, 8, 200], [2, 2, 3])
    assert records["logprob"].tolist() == [-INF, -INF, pytest.approx(-math.log(2))]
    assert records["rank"].tolist() == [1, 1, 1]
    assert records["top_ids"][:, :3].tolist() == [[0, 1, -1], [0, 1, -1], [5, 200, 0]]
    assert records["top_logprobs"][2, 2] == -INF


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("target", [-1, 300, 2**31 - 1])
def test_a_target_outside_the_vocabulary_is_impossible_and_harms_nothing(size: int, target: int) -> None:
    record = score_on_ranks(size, torch.zeros(1, 300), [target], [1])[0]
    assert record["logprob"] == -INF
    assert record["rank"] == 301
    assert record["top_logprobs"][0] == pytest.approx(-math.log(300))


@pytest.mark.parametrize("size", [1, 2])
def test_long_batches_are_scored_in_parts_like_their_rows(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(8)
    logits = torch.from_numpy(generator.standard_normal((23, 400))).float()
    targets, num_top = generator.integers(0, 400, 23).tolist(), generator.integers(0, 6, 23).tolist()
    alone = [score(logits[r : r + 1], [targets[r]], [num_top[r]]) for r in range(23)]
    monkeypatch.setattr(logprobs, "MAX_ROWS", 5)
    together, apart = score_on_ranks(size, logits, targets, num_top), np.concatenate(alone)
    assert all(np.array_equal(together[name], apart[name]) for name in LOGPROB.names or ())


def test_a_scorers_memory_carries_nothing_from_step_to_step() -> None:
    generator = np.random.default_rng(9)
    scorer = LogprobScorer(0, 400, Alone())
    for num_rows in (3, 30, 1, 12):
        logits = torch.from_numpy(generator.standard_normal((num_rows, 400))).bfloat16()
        targets = generator.integers(0, 400, num_rows).tolist()
        assert score(logits, targets, 7, scorer).tobytes() == score(logits, targets, 7).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_views_change_no_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    padded = torch.randn(40, 700, generator=torch.Generator().manual_seed(10)).to(dtype)
    view, targets = padded[1::2, 37:637], list(range(20))
    alone = score(view.contiguous(), targets, 5)
    monkeypatch.setattr(arguments, "PARALLEL_MIN_LOGITS", 0)
    assert score(view, targets, 5).tobytes() == alone.tobytes()


def test_ranks_exchange_a_few_hundred_bytes_a_row_whatever_the_vocabulary() -> None:
    def received(vocab: int) -> int:
        def run(collectives: Collectives) -> int:
            scorer = LogprobScorer(collectives.rank * vocab, vocab, collectives)
            score(torch.zeros(10, vocab), [0] * 10, 20, scorer)
            return collectives.received_bytes

        return run_ranks(2, run)[0]

    assert received(128) == received(12_800) == 10 * (8 + 16 + 8 * 20)


def test_no_rows_are_no_work() -> None:
    assert score(torch.zeros(0, 50), []).shape == (0,)
