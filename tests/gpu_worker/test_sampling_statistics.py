"""Sampled tokens follow the distribution that `params` defines, for every feature, mode and number of ranks.

Pearson's chi-square against the exact probabilities: step A written out in numpy, the oracle's filters, a softmax.
Declared beforehand: each test fails at a significance level of 1e-6, so that all of them together would cry wolf once
in ten thousand sets of seeds. Seeds are fixed, so a test's outcome is always the same.
"""

import math
from typing import Any, Final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sampling_batches import make_table
from sharded_logits import MODES, sample_on_ranks

from albireo.config import SamplingMode
from albireo.gpu_worker.sampling.oracle import kept_tokens
from albireo.gpu_worker.sampling.table import SamplingTable

SIGNIFICANCE: Final = 1e-6
NORMAL_QUANTILE: Final = 4.753424
"""Of 1 - SIGNIFICANCE."""
NUM_SEEDS: Final = 64
NUM_POSITIONS: Final = 256
NUM_DRAWS: Final = NUM_SEEDS * NUM_POSITIONS
VOCAB: Final = 400
LEAST_EXPECTED: Final = 10.0
"""Draws expected of a token, below which it is counted together with others: chi-square is an approximation."""

PROMPT, OUTPUT = (20, 150, 300, 399), {300: 1, 130: 2, 395: 1, 5: 3}
BIAS = {20: 1.5, 260: -2.0, 131: 3.0, 390: -100.0}
STOP_IDS = (130, 300)
BAD_WORDS = ((20,), (7, 8, 395), (8, 131), (9, 5))
RECENT = (7, 8)

FEATURES: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 6},
    "large top_k": {"top_k": 200, "temperature": 2.0},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.25},
    "all filters": {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "temperature": 1.3},
    "repetition": {"repetition": 1.8},
    "presence": {"presence": 1.5},
    "frequency": {"frequency": 0.6},
    "logit_bias": {"bias": True},
    "min_tokens": {"min_tokens": True},
    "bad_words": {"bad_words": True},
    "all together": {
        "temperature": 1.2, "top_p": 0.95, "top_k": 100, "min_p": 0.001, "repetition": 1.2, "presence": 0.3,
        "frequency": 0.2, "bias": True, "min_tokens": True, "bad_words": True,
    },
    "all but top_k": {
        "temperature": 1.2, "top_p": 0.95, "min_p": 0.001, "repetition": 1.2, "presence": 0.3, "frequency": 0.2,
        "bias": True, "min_tokens": True, "bad_words": True,
    },
}  # fmt: skip


def base_logits() -> NDArray[np.float32]:
    """Some likely tokens in every share, ties among them, and many unlikely ones."""
    logits = np.random.default_rng(0).normal(-5.0, 1.0, VOCAB).astype(np.float32)
    for i, token in enumerate((5, 20, 90, 127, 128, 130, 131, 150, 255, 260, 300, 383, 384, 390, 395, 399)):
        logits[token] = 1.5 - 0.25 * (i * 7 % 16)
    logits[[128, 384]] = logits[90]
    return logits


def fill_table(feature: dict[str, Any]) -> SamplingTable:
    """NUM_SEEDS slots that differ in nothing but the seed."""
    plain = {name: feature[name] for name in ("top_p", "min_p", "top_k") if name in feature}
    seeds = np.random.default_rng(1).integers(0, 2**63, NUM_SEEDS).tolist()
    table = make_table([feature.get("temperature", 1.0)] * NUM_SEEDS, seed=seeds, max_model_len=64, **plain)
    if {"repetition", "presence", "frequency"} & feature.keys():
        table.has_penalties[:] = table.is_special[:] = True
        table.repetition_penalty[:] = feature.get("repetition", 1.0)
        table.presence_penalty[:] = feature.get("presence", 0.0)
        table.frequency_penalty[:] = feature.get("frequency", 0.0)
        seen = sorted({*PROMPT, *OUTPUT})
        table.num_seen[:] = len(seen)
        table.seen_ids[:, : len(seen)] = seen
        table.seen_counts[:, : len(seen)] = [2 * OUTPUT.get(token, 0) + (token in PROMPT) for token in seen]
    if "bias" in feature:
        table.is_special[:] = True
        table.num_bias[:] = len(BIAS)
        table.bias_ids[:, : len(BIAS)], table.bias_values[:, : len(BIAS)] = list(BIAS), list(BIAS.values())
    if "min_tokens" in feature:
        table.min_position[:] = NUM_POSITIONS
        table.stop_ids[:, :2], table.num_eos_ids[:], table.num_stop_ids[:] = STOP_IDS, 1, 1
    if "bad_words" in feature:
        table.is_special[:] = True
        entries = [entry for word in BAD_WORDS for entry in (len(word), *word)]
        table.bad_words[:, : len(entries)], table.bad_words_size[:] = entries, len(entries)
        table.recent[:, : len(RECENT)], table.num_recent[:] = RECENT, len(RECENT)
    return table


def adjusted(logits: NDArray[np.float32], feature: dict[str, Any]) -> NDArray[np.float32]:
    """Step A of `params`, one token at a time."""
    v = logits.copy()
    if "bad_words" in feature:
        for *before, last in BAD_WORDS:
            if tuple(before) == RECENT[len(RECENT) - len(before) :]:
                v[last] = -np.inf
    if "min_tokens" in feature:
        v[list(STOP_IDS)] = -np.inf
    for token, bias in BIAS.items() if "bias" in feature else ():
        v[token] += np.float32(bias)
    for token in {*PROMPT, *OUTPUT}:
        repetition = np.float32(feature.get("repetition", 1.0))
        v[token] = v[token] / repetition if v[token] > 0 else v[token] * repetition
    for token, times in OUTPUT.items():
        v[token] -= np.float32(feature.get("frequency", 0.0)) * np.float32(times)
        v[token] -= np.float32(feature.get("presence", 0.0))
    return v


def exact_probabilities(logits: NDArray[np.float32], feature: dict[str, Any]) -> NDArray[np.float64]:
    values = adjusted(logits, feature)
    temperature = float(np.float32(feature.get("temperature", 1.0)))
    top_p, min_p = (float(np.float32(feature.get(name, off))) for name, off in (("top_p", 1.0), ("min_p", 0.0)))
    kept = kept_tokens(values, temperature, top_p, min_p, feature.get("top_k", 0))
    weights = np.zeros(VOCAB)
    weights[kept] = np.exp((values[kept].astype(np.float64) - float(values.max())) / temperature)
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities


def chi_square_limit(degrees: int) -> float:
    """The quantile of 1 - SIGNIFICANCE (Wilson and Hilferty 1931)."""
    spread = 2.0 / (9.0 * degrees)
    return degrees * (1.0 - spread + NORMAL_QUANTILE * math.sqrt(spread)) ** 3


def assert_follows(counts: NDArray[np.int64], probabilities: NDArray[np.float64]) -> None:
    assert counts[probabilities == 0.0].sum() == 0
    expected = probabilities * counts.sum()
    often = expected >= LEAST_EXPECTED
    observed, wanted = list(counts[often]), list(expected[often])
    if (rest := expected[~often].sum()) >= LEAST_EXPECTED:
        observed.append(counts[~often].sum())
        wanted.append(rest)
    chi_square = float(np.sum((np.array(observed) - wanted) ** 2 / np.array(wanted)))
    assert len(wanted) > 2
    assert chi_square < chi_square_limit(len(wanted) - 1)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("feature", FEATURES)
def test_tokens_follow_the_exact_distribution(feature: str, mode: SamplingMode, size: int) -> None:
    logits = base_logits()
    slots = np.repeat(np.arange(NUM_SEEDS, dtype=np.int32), NUM_POSITIONS)
    positions = np.tile(np.arange(NUM_POSITIONS, dtype=np.int64), NUM_SEEDS)
    rows = torch.from_numpy(logits).expand(NUM_DRAWS, -1)
    sampled, _ = sample_on_ranks(mode, size, rows, fill_table(FEATURES[feature]), slots, positions)
    counts = np.bincount(sampled.tokens, minlength=VOCAB)
    assert_follows(counts, exact_probabilities(logits, FEATURES[feature]))


def test_the_measure_tells_a_token_drawn_a_fifth_too_often() -> None:
    probabilities = exact_probabilities(base_logits(), {})
    biased = probabilities.copy()
    biased[np.argmax(probabilities)] *= 1.2
    counts = np.random.default_rng(2).multinomial(NUM_DRAWS, biased / biased.sum())
    with pytest.raises(AssertionError):
        assert_follows(counts, probabilities)


def test_every_feature_changes_the_distribution() -> None:
    logits = base_logits()
    plain = exact_probabilities(logits, {})
    for feature in FEATURES.values():
        assert np.abs(exact_probabilities(logits, feature) - plain).max() > 0.005
