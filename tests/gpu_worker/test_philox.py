"""Philox: published answers, agreement of the kernel with the reference, and the quality of the noise it gives.

Seeds are fixed, so a statistic either passes always or never; bounds are about 4 standard deviations.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from albireo.gpu_worker.sampling.draw import MAX_NOISE, philox_block
from albireo.gpu_worker.sampling.kernels import BLOCK
from albireo.gpu_worker.sampling.philox import gumbel, philox4x32, token_words, uniform


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        # Random123's kat_vectors, the three lines of philox4x32 with 10 rounds
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers_of_random123(counter: str, key: str, answer: str) -> None:
    words = np.array([[int(word, 16) for word in counter.split()]], dtype=np.uint32)
    low, high = (int(word, 16) for word in key.split())
    assert " ".join(f"{word:08x}" for word in philox4x32(words, (low, high))[0]) == answer


def test_a_tokens_word_is_its_lane_of_its_counter_under_the_seed() -> None:
    seed, position, token = 0x299F31D0A4093822, 0x13198A2E85A308D3, 4 * 5 + 3
    block = philox4x32(np.array([[5, 0x85A308D3, 0x13198A2E, 0]], dtype=np.uint32), (0xA4093822, 0x299F31D0))
    assert token_words(seed, position, 100)[token] == block[0, 3]


def test_a_tokens_word_does_not_depend_on_the_vocabulary() -> None:
    assert np.array_equal(token_words(7, 9, 1001)[:101], token_words(7, 9, 101))


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_the_kernels_words_are_the_references(seed: int, position: int, block: int) -> None:
    out = np.zeros(BLOCK, np.uint32)
    philox_block(np.uint64(seed), np.uint64(position), block * BLOCK // 4, out)
    words = token_words(seed, position, (block + 1) * BLOCK)
    assert np.array_equal(out, words[-BLOCK:])


def test_uniforms_never_reach_the_ends_and_bound_the_noise() -> None:
    ends = np.array([0, 2**32 - 1], dtype=np.uint32)
    low, high = uniform(ends)
    assert low > 0.0 and high < 1.0
    least, most = gumbel(ends)
    assert np.isfinite(least) and most <= MAX_NOISE


def _words_along(axis: str) -> NDArray[np.uint32]:
    """Words along one axis of (seed, position, token), the others held."""
    match axis:
        case "tokens":
            return token_words(0, 17, 1 << 16)
        case "tokens of a large seed":
            return token_words(0x9E3779B97F4A7C15, 17, 1 << 16)
        case "positions":
            return np.array([token_words(5, position, 102)[101] for position in range(4000)])
        case "seeds":
            return np.array([token_words(seed, 17, 102)[101] for seed in range(4000)])
        case _:
            return np.array([token_words(seed << 32, 17, 1)[0] for seed in range(4000)])


AXES = ("tokens", "tokens of a large seed", "positions", "seeds", "high halves of seeds")


@pytest.mark.parametrize("axis", AXES)
def test_words_are_uniform_along_every_axis(axis: str) -> None:
    words = _words_along(axis)
    for shift in (24, 12, 0):  # top, middle and low byte
        counts = np.bincount((words >> np.uint32(shift)) & np.uint32(255), minlength=256)
        expected = len(words) / 256
        chi_square = float(np.sum((counts - expected) ** 2) / expected)
        assert abs(chi_square - 255) < 4 * np.sqrt(2 * 255)
    # Kolmogorov-Smirnov; 1.95 is passed by chance once in a thousand
    u = np.sort(uniform(words))
    ranks = np.arange(len(u))
    distance = max(np.max((ranks + 1) / len(u) - u), np.max(u - ranks / len(u)))
    assert distance * np.sqrt(len(u)) < 1.95


@pytest.mark.parametrize("axis", AXES)
def test_neighbours_are_uncorrelated_along_every_axis(axis: str) -> None:
    u = uniform(_words_along(axis))
    for lag in (1, 2, 4, 128):
        assert abs(_correlation(u[:-lag], u[lag:])) * np.sqrt(len(u)) < 4.2


def test_draws_of_neighbouring_seeds_and_positions_are_uncorrelated() -> None:
    base = uniform(token_words(1000, 1000, 1 << 16))
    for seed, position in ((1001, 1000), (1000, 1001), (1000 + 2**32, 1000), (1000, 1000 + 2**32), (1001, 1001)):
        other = uniform(token_words(seed, position, 1 << 16))
        assert abs(_correlation(base, other)) * np.sqrt(len(base)) < 4


def test_flipping_any_input_bit_flips_half_of_the_output_bits() -> None:
    base = token_words(1234567, 89, 256)
    for bit in range(64):
        flipped = [token_words(1234567 ^ (1 << bit), 89, 256)]
        if bit < 63:
            flipped.append(token_words(1234567, 89 ^ (1 << bit), 256))
        for words in flipped:
            share = float(np.unpackbits((base ^ words).view(np.uint8)).mean())
            assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(256 * 32)


def test_noise_has_the_moments_of_a_gumbel() -> None:
    noise = gumbel(token_words(3, 4, 1 << 18))
    assert abs(noise.mean() - np.euler_gamma) < 4 * np.sqrt(np.pi**2 / 6 / len(noise))
    assert abs(noise.var() / (np.pi**2 / 6) - 1.0) < 0.02


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float(np.corrcoef(x, y)[0, 1])
