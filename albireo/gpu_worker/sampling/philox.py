"""Philox4x32-10, the counter-based generator behind every draw, in numpy: the reference for the kernels.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11. A block of
four 32-bit words is a function of a 128-bit counter and a 64-bit key, so any word is had without those before it.

A token's noise is a function of (seed, position, token id): the key is the request's seed, its low half first; the
counter is (token id // 4, position low, position high, 0); the token's word is number token id % 4.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """The blocks of `counter`, uint32 [n, 4], under the two words of `key`: uint32 [n, 4]."""
    a, b, c, d = (counter[:, i].astype(np.uint64) for i in range(4))
    for step in range(_ROUNDS):
        keys = [np.uint64((key[i] + step * _KEY_STEPS[i]) % 2**32) for i in range(2)]
        first, second = a * np.uint64(_MULTIPLIERS[0]), c * np.uint64(_MULTIPLIERS[1])
        a, b = (second >> _HALF) ^ b ^ keys[0], second & _LOW
        c, d = (first >> _HALF) ^ d ^ keys[1], first & _LOW
    return np.stack([a, b, c, d], axis=1).astype(np.uint32)


def token_words(seed: int, position: int, vocab: int) -> NDArray[np.uint32]:
    """The words of token ids [0, vocab) for one draw: uint32 [vocab]. `seed` in [0, 2^64), `position` >= 0."""
    counter = np.zeros((-(-vocab // 4), 4), dtype=np.uint32)
    counter[:, 0] = np.arange(len(counter))
    counter[:, 1], counter[:, 2] = position % 2**32, position >> 32
    return philox4x32(counter, (seed % 2**32, seed >> 32)).reshape(-1)[:vocab]


def uniform(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Words as numbers in (0, 1), both ends excluded: (x + 1/2) 2^-32, exact."""
    return (words.astype(np.float64) + 0.5) * 2.0**-32


def gumbel(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Words as standard Gumbel noise, in [-3.14, 22.88]."""
    noise: NDArray[np.float64] = -np.log(-np.log(uniform(words)))
    return noise
