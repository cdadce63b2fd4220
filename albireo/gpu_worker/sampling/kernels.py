"""The CPU sampler's numba kernels: `params` says what they compute, `oracle` says it in the simplest way.

All compiled code of the sampler stands in this one file, because numba's on-disk cache notices a change only in the
file of the function that it cached, not in those of its callees.

A row costs what it asks for, in passes over blocks of `BLOCK` tokens:

greedy       the largest logit of every block
temperature  + the draw: Philox for the blocks that may win, two logarithms for the few tokens that may
top_k        + an exact selection among the tokens of the k blocks with the largest maxima
top_p        + the mass in front of the token drawn: mostly it lies in the nucleus, else a draw among those in front
             of it. No threshold is searched, nothing is sorted: 1 + ln(1 / top_p) rounds at the most on average.

No loop carries a float reduction: maxima run over integer keys and masses are integers. So LLVM vectorises them with
no leave to change a result, and no result depends on the vector width or the number of threads.
"""

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit, prange, types
from numba.extending import overload
from numpy.typing import NDArray

BLOCK: Final = 128
"""Tokens per block: 32 Philox counters. Small enough that a block which cannot win is worth skipping."""
NUM_BINS: Final = 256
"""Bins of a round of `_select`; more cost more to clear than they save rounds."""
MASS_BITS: Final = 44
"""The largest logit has mass 2^44. More bits would leave too few for the sum (`cpu.MAX_VOCAB`)."""

_NEG_INF: Final = np.float32(-np.inf)
_MAX_FLOAT: Final = 3e38
"""Caps 1 / temperature as a float32: a finite factor keeps the maximum's own gap of 0 a 0."""
_LAST_ID: Final = np.int32(0x7FFFFFFF)
_MASSLESS_GAP: Final = 31.0
"""e^-31 < 2^-44"""
_MAX_NOISE: Final = 22.8740
"""-log(-log(1 - 2^-33)) = 22.87394, rounded up."""

_KEY_INF = np.int32(0x7F800000)
_KEY_NEG_INF = np.int32(-0x7F800001)
_SIGN_SHIFT = np.int32(31)
_VALUE_BITS = np.int32(0x7FFFFFFF)

_LOG2_E = 1.0 / math.log(2.0)
_ROUND = 1.5 * 2.0**52
_ONE = 2.0**MASS_BITS
_C1, _C2, _C3, _C4, _C5, _C6, _C7, _C8, _C9 = (math.log(2.0) ** k / math.factorial(k) for k in range(1, 10))

_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_ALL_ONES = np.uint32(0xFFFFFFFF)
_LN2 = np.float32(math.log(2.0))
_BITS_TO_LOG2 = np.float32(2.0**-23)


class Scratch(NamedTuple):
    """Working memory, one row per thread."""

    maxima: NDArray[np.float32]
    """[num_threads, num_blocks]"""
    noise: NDArray[np.uint32]
    """[num_threads, BLOCK]"""
    bins: NDArray[np.int64]
    """[num_threads, NUM_BINS]"""
    ids: NDArray[np.int32]
    """[num_threads, num_blocks * BLOCK]"""
    keys: NDArray[np.int32]
    """[num_threads, num_blocks * BLOCK]"""


def _value(raw: Any) -> Any:
    """A stored logit as float32: it is one, or it is bf16 bits held as uint16."""
    raise NotImplementedError


@overload(_value, strict=False)
def _overload_value(raw: Any) -> Any:
    if isinstance(raw, types.Float):
        return lambda raw: raw
    return lambda raw: np.uint32(np.uint32(raw) << np.uint32(16)).view(np.float32)


@njit
def _key(value: Any) -> Any:
    """A float32 as the int32 that sorts like it; -0 like +0, NaN like -inf."""
    bits = np.float32(value + np.float32(0.0)).view(np.int32)
    key = np.int32(bits ^ np.int32(np.int32(bits >> _SIGN_SHIFT) & _VALUE_BITS))
    return key if key <= _KEY_INF and key >= _KEY_NEG_INF else _KEY_NEG_INF


@njit
def _from_key(key: Any) -> Any:
    return np.int32(key ^ np.int32(np.int32(key >> _SIGN_SHIFT) & _VALUE_BITS)).view(np.float32)


@njit
def _mass(gap: Any) -> Any:
    """floor(2^44 * e^gap) for a float64 gap <= 0, to 1e-11; by the same operations as `oracle.mass`."""
    exponent = gap * _LOG2_E
    exponent = exponent if exponent > -63.0 else -63.0
    whole = (exponent + _ROUND) - _ROUND
    r = exponent - whole
    upper = _C5 + r * (_C6 + r * (_C7 + r * (_C8 + r * _C9)))
    power = 1.0 + r * (_C1 + r * (_C2 + r * (_C3 + r * (_C4 + r * upper))))
    return np.int64(power * _ONE) >> np.int64(-whole)


@njit
def _block_maxima(row: Any, maxima: Any) -> Any:
    """Fills in the largest logit of each block and returns the row's; NaN counts as -inf."""
    largest = _KEY_NEG_INF
    for block in range(maxima.size):
        start = block * BLOCK
        key = _KEY_NEG_INF
        for j in range(min(BLOCK, row.size - start)):
            key = np.int32(max(key, _key(_value(row[start + j]))))
        maxima[block] = _from_key(key)
        largest = np.int32(max(largest, key))
    return _from_key(largest)


@njit
def _first_equal(row: Any, maxima: Any, top: Any) -> Any:
    """The smallest id whose logit is `top`, the row's maximum; 0 where no logit is above -inf."""
    if top > _NEG_INF:
        for block in range(maxima.size):
            if maxima[block] == top:
                for i in range(block * BLOCK, row.size):
                    if _value(row[i]) == top:
                        return i
    return 0


@njit
def _select(keys: Any, ids: Any, count: Any, k: Any, bins: Any) -> Any:
    """(key, id) of the k-th entry, 1 <= k <= count, by falling key and then rising id; `ids` ascend.

    Radix select, 8 bits of the keys' range a round; overwrites its inputs with the entries that are still in play.
    """
    while True:
        low, high = np.int64(keys[0]), np.int64(keys[0])
        for i in range(count):
            low = min(low, np.int64(keys[i]))
            high = max(high, np.int64(keys[i]))
        if low == high:
            return keys[k - 1], ids[k - 1]
        shift = 0
        while (high - low) >> shift >= NUM_BINS:
            shift += 1
        bins[:] = 0
        for i in range(count):
            bins[(high - keys[i]) >> shift] += 1
        end = 0
        while bins[end] < k:
            k -= bins[end]
            end += 1
        kept = 0
        for i in range(count):
            key, inside = keys[i], (high - keys[i]) >> shift == end
            keys[kept] = key
            ids[kept] = ids[i]
            kept += inside
        count = kept


@njit
def _top_k_prefix(row: Any, k: Any, scratch: Any, t: Any) -> Any:
    """The end (value, id) of the k first tokens of the descending order.

    The k-th largest block maximum has k tokens at or above it, so nothing below it can be among the first k.
    """
    maxima, bins, ids, keys = scratch.maxima[t], scratch.bins[t], scratch.ids[t], scratch.keys[t]
    floor = _NEG_INF
    if k <= maxima.size:
        for block in range(maxima.size):
            keys[block] = _key(maxima[block])
            ids[block] = block
        floor = _from_key(_select(keys, ids, maxima.size, k, bins)[0])
    floor_key = _key(floor)
    count = 0
    for block in range(maxima.size):
        if maxima[block] >= floor:
            for i in range(block * BLOCK, min(block * BLOCK + BLOCK, row.size)):
                key = _key(_value(row[i]))
                keys[count] = key
                ids[count] = i
                count += key >= floor_key
    key, last = _select(keys, ids, count, k, bins)
    return _from_key(key), last


@njit
def _in_nucleus(row: Any, maxima: Any, top: Any, inv_t: Any, top_p: Any, value: Any, last: Any, winner: Any) -> Any:
    """Whether the mass in front of `winner` falls short of `top_p` of the mass of the prefix (value, last).

    Blocks that lie wholly behind the winner only add to the total: without them it is a lower bound, often enough.
    """
    own = _value(row[winner])
    total, before = np.int64(0), np.int64(0)
    for behind in (False, True):
        for block in range(maxima.size):
            largest = maxima[block]
            if (largest < own) != behind or largest < value or (top - largest) * inv_t > _MASSLESS_GAP:
                continue
            start = block * BLOCK
            for j in range(min(BLOCK, row.size - start)):
                v = _value(row[start + j])
                mass = _mass((np.float64(v) - np.float64(top)) * inv_t)
                inside = (v > value) | ((v == value) & (start + j <= last))
                ahead = (v > own) | ((v == own) & (start + j < winner))
                total += mass if inside else np.int64(0)
                before += mass if ahead else np.int64(0)
        if before < max(np.int64(1), np.int64(math.ceil(np.float64(top_p) * np.float64(total)))):
            return True
    return False


@njit
def _philox_block(key: Any, position: Any, counter: Any, out: Any) -> None:
    """Philox4x32-10 words of 32 counters (counter + j, position low, position high, 0): the noise of 128 tokens."""
    for j in range(BLOCK // 4):
        a, b, c, d = np.uint64(counter) + np.uint64(j), position & _LOW, position >> _32, np.uint64(0)
        k0, k1 = key & _LOW, key >> _32
        for _ in range(10):
            p0, p1 = _M0 * a, _M1 * c
            a, b, c, d = (p1 >> _32) ^ b ^ k0, p1 & _LOW, (p0 >> _32) ^ d ^ k1, p0 & _LOW
            k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
        out[4 * j] = np.uint32(a)
        out[4 * j + 1] = np.uint32(b)
        out[4 * j + 2] = np.uint32(c)
        out[4 * j + 3] = np.uint32(d)


@njit
def _score(value: Any, inv_t: Any, word: Any) -> Any:
    u = (np.float64(word) + 0.5) * 2.0**-32
    return np.float64(value) * inv_t - math.log(-math.log(u))


@njit
def _may_win(value: Any, top: Any, scale: Any, word: Any, least: Any) -> Any:
    """False only for a token whose score falls short: a cheap upper bound, without a logarithm.

    g = -log(-log(u)) <= -log(1 - u), and the bits of a positive float, read as an integer, are its log2 to within
    0.086 from below (Mitchell 1962).
    """
    bits = np.float32(np.float32(_ALL_ONES ^ word) + np.float32(0.5)).view(np.int32)
    noise = _LN2 * (np.float32(159.0) - np.float32(bits) * _BITS_TO_LOG2)
    return (value - top) * scale + noise >= least


@njit
def _draw(
    row: Any, first: Any, top: Any, inv_t: Any, key: Any, position: Any, value: Any, last: Any, maxima: Any, noise: Any
) -> Any:
    """Gumbel-max over the prefix (value, last): the token of the largest score, the smallest id among equals."""
    scale = np.float32(min(inv_t, _MAX_FLOAT))
    top_score = np.float64(top) * inv_t
    # more than the bound loses to float32, and than the scores lose to float64 where they dwarf the noise
    margin = 1e-3 + 1e-15 * abs(top_score)
    winner = first
    _philox_block(key, position, first // BLOCK * (BLOCK // 4), noise)
    best = _score(top, inv_t, noise[first % BLOCK])
    for block in range(maxima.size):
        if maxima[block] < value or np.float64(maxima[block]) * inv_t + _MAX_NOISE < best:
            continue
        start = block * BLOCK
        size = min(BLOCK, row.size - start)
        _philox_block(key, position, start // 4, noise)
        least = np.float32(best - top_score - margin)
        candidates = 0
        for j in range(size):
            v = _value(row[start + j])
            candidates += (v >= value) & _may_win(v, top, scale, noise[j], least)
        if candidates == 0:
            continue
        for j in range(size):
            v, i = _value(row[start + j]), start + j
            kept = v > value or (v == value and i <= last)
            if kept and _may_win(v, top, scale, noise[j], least) and np.float64(v) * inv_t + _MAX_NOISE >= best:
                score = _score(v, inv_t, noise[j])
                if score > best or (score == best and i < winner):
                    best, winner = score, i
    return winner


@njit
def _sample_row(
    row: Any, temperature: Any, top_p: Any, min_p: Any, top_k: Any, seed: Any, position: Any, scratch: Any, t: Any
) -> Any:
    maxima, noise = scratch.maxima[t], scratch.noise[t]
    top = _block_maxima(row, maxima)
    first = _first_equal(row, maxima, top)
    if not temperature > 0.0 or abs(top) == np.float32(np.inf):
        return first
    inv_t = 1.0 / np.float64(temperature)
    value, last = _NEG_INF, _LAST_ID
    if 0 < top_k < row.size:
        value, last = _top_k_prefix(row, top_k, scratch, t)
    if min_p > 0.0:
        floor = _round_up(np.float64(top) + np.float64(temperature) * math.log(np.float64(min_p)))
        if floor > value:
            value, last = floor, _LAST_ID
    key, position = np.uint64(seed), np.uint64(position)
    if not top_p < 1.0:
        return _draw(row, first, top, inv_t, key, position, value, last, maxima, noise)
    # even all together, tokens below this floor cannot hold the mass that the nucleus leaves out
    reach = math.log(row.size / (1.0 - np.float64(top_p))) + 0.01
    floor = np.float32(np.float64(top) - np.float64(temperature) * reach)
    near, near_last = (floor, _LAST_ID) if floor > value else (value, last)
    winner = _draw(row, first, top, inv_t, key, position, near, near_last, maxima, noise)
    while not _in_nucleus(row, maxima, top, inv_t, top_p, value, last, winner):
        near, near_last = _value(row[winner]), np.int32(winner - 1)
        winner = _draw(row, first, top, inv_t, key, position, near, near_last, maxima, noise)
    return winner


@njit
def _round_up(x: Any) -> Any:
    """The smallest float32 that is not below the float64 `x`."""
    rounded = np.float32(x)
    return np.nextafter(rounded, np.float32(np.inf)) if np.float64(rounded) < x else rounded


@njit(cache=True, nogil=True)
def sample_rows(
    logits: Any, stride: Any, vocab: Any, slots: Any, positions: Any, temperature: Any, top_p: Any, min_p: Any,
    top_k: Any, seed: Any, out: Any, scratch: Any, t: Any, num_threads: Any,
) -> None:  # fmt: skip
    """Samples rows t, t + num_threads, ...: thread t's share, dealt out in turn so that costly rows spread.

    `logits` is flat float32 or uint16 (bf16 bits), row r at [r * stride, r * stride + vocab); the rest as in
    `params.Sampler`, as numpy arrays. Touches only row t of `scratch`.
    """
    for r in range(t, slots.size, num_threads):
        row, slot = logits[r * stride : r * stride + vocab], slots[r]
        out[r] = _sample_row(
            row, temperature[slot], top_p[slot], min_p[slot], top_k[slot], seed[slot], positions[r], scratch, t
        )


@njit(cache=True, nogil=True, parallel=True)
def sample_rows_parallel(
    logits: Any, stride: Any, vocab: Any, slots: Any, positions: Any, temperature: Any, top_p: Any, min_p: Any,
    top_k: Any, seed: Any, out: Any, scratch: Any, num_threads: Any,
) -> None:  # fmt: skip
    """`sample_rows` for all rows, on `num_threads` of numba's threads."""
    for t in prange(num_threads):
        # prange counts in uint64, which would compile a second sample_rows
        thread = np.int64(t)
        sample_rows(
            logits, stride, vocab, slots, positions, temperature, top_p, min_p, top_k, seed, out, scratch, thread,
            num_threads,
        )  # fmt: skip
