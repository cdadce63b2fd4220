"""Passes over a row of logits, or over a rank's share of one: maxima, order, masses. Compiled into the kernels of
`row_kernel` and `local_kernels`; `params` says what they compute, `oracle` says it in the simplest way.

A row costs what it asks for, in passes over blocks of `BLOCK` tokens:

greedy       the largest logit of every block
temperature  + the draw (`draw`): Philox for the blocks that may win, two logarithms for the few tokens that may
top_k        + an exact selection among the tokens of the k blocks with the largest maxima
top_p        + the mass in front of the token drawn: mostly it lies in the nucleus, else a draw among those in front
             of it. No threshold is searched, nothing is sorted: 1 + ln(1 / top_p) rounds at the most on average.

No loop carries a float reduction: maxima run over integer keys and masses are integers. So LLVM vectorises them with
no leave to change a result, and no result depends on the vector width or the number of threads or ranks.

`row` is float32, or bf16 bits as uint16. Tokens are counted from the beginning of the row that is passed. A prefix
of the order of `params` is given by its end: (value, last) are the last token's logit and id.
"""

import math
from typing import Any, Final

import numpy as np
from numba import njit, types
from numba.extending import overload

from albireo.gpu_worker.kernels.launch import CALLED, INLINED

BLOCK: Final = 128
"""Tokens per block: 32 Philox counters. Small enough that a block which cannot win is worth skipping."""
NUM_BINS: Final = 256
"""Bins of a round of `select`; more cost more to clear than they save rounds."""
MASS_BITS: Final = 44
"""The largest logit has mass 2^44. More bits would leave too few for the sum (`cpu.MAX_VOCAB`)."""
NEG_INF: Final = np.float32(-np.inf)
LAST_ID: Final = np.int32(0x7FFFFFFF)
"""No token's id: a prefix that ends with it holds all tokens of its last value."""
NO_BOUND: Final = np.int64(0x7FFFFFFFFFFFFFFF)
"""An upper bound of any mass."""

_MASSLESS_GAP: Final = 31.0
"""e^-31 < 2^-44"""
_KEY_INF = np.int32(0x7F800000)
_KEY_NEG_INF = np.int32(-0x7F800001)
_SIGN_SHIFT = np.int32(31)
_VALUE_BITS = np.int32(0x7FFFFFFF)

_LOG2_E = 1.0 / math.log(2.0)
_ROUND = 1.5 * 2.0**52
_ONE = 2.0**MASS_BITS
_C1, _C2, _C3, _C4, _C5, _C6, _C7, _C8, _C9 = (math.log(2.0) ** k / math.factorial(k) for k in range(1, 10))


def value_of(raw: Any) -> Any:
    """A stored logit as float32: it is one, or it is bf16 bits held as uint16."""
    raise NotImplementedError


@overload(value_of, strict=False)
def _overload_value_of(raw: Any) -> Any:
    if isinstance(raw, types.Float):
        return lambda raw: raw
    return lambda raw: np.uint32(np.uint32(raw) << np.uint32(16)).view(np.float32)


@njit(**INLINED)
def key_of(value: Any) -> Any:
    """A float32 as the int32 that sorts like it; -0 like +0, NaN like -inf."""
    bits = np.float32(value + np.float32(0.0)).view(np.int32)
    key = np.int32(bits ^ np.int32(np.int32(bits >> _SIGN_SHIFT) & _VALUE_BITS))
    return key if key <= _KEY_INF and key >= _KEY_NEG_INF else _KEY_NEG_INF


@njit(**INLINED)
def from_key(key: Any) -> Any:
    return np.int32(key ^ np.int32(np.int32(key >> _SIGN_SHIFT) & _VALUE_BITS)).view(np.float32)


@njit(**INLINED)
def mass(gap: Any) -> Any:
    """floor(2^44 * e^gap) for a float64 gap <= 0, to 1e-11; by the same operations as `oracle.mass`."""
    exponent = gap * _LOG2_E
    exponent = exponent if exponent > -63.0 else -63.0
    whole = (exponent + _ROUND) - _ROUND
    r = exponent - whole
    upper = _C5 + r * (_C6 + r * (_C7 + r * (_C8 + r * _C9)))
    power = 1.0 + r * (_C1 + r * (_C2 + r * (_C3 + r * (_C4 + r * upper))))
    return np.int64(power * _ONE) >> np.int64(-whole)


@njit(**INLINED)
def round_up(x: Any) -> Any:
    """The smallest float32 that is not below the float64 `x`."""
    rounded = np.float32(x)
    return np.nextafter(rounded, np.float32(np.inf)) if np.float64(rounded) < x else rounded


@njit(**CALLED)
def block_maxima(row: Any, maxima: Any) -> Any:
    """Fills in the largest logit of each block and returns the row's; NaN counts as -inf."""
    largest = _KEY_NEG_INF
    for block in range(maxima.size):
        start = block * BLOCK
        key = _KEY_NEG_INF
        for j in range(min(BLOCK, row.size - start)):
            key = np.int32(max(key, key_of(value_of(row[start + j]))))
        maxima[block] = from_key(key)
        largest = np.int32(max(largest, key))
    return from_key(largest)


@njit(**CALLED)
def first_equal(row: Any, maxima: Any, top: Any) -> Any:
    """The smallest id whose logit is `top`, the row's maximum; 0 where no logit is above -inf."""
    if top > NEG_INF:
        for block in range(maxima.size):
            if maxima[block] == top:
                for i in range(block * BLOCK, row.size):
                    if value_of(row[i]) == top:
                        return i
    return 0


@njit(**CALLED)
def select(keys: Any, ids: Any, count: Any, k: Any, bins: Any) -> Any:
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


@njit(**CALLED)
def top_k_prefix(row: Any, k: Any, maxima: Any, bins: Any, ids: Any, keys: Any) -> Any:
    """The end (value, id) of the k first tokens of the descending order.

    The k-th largest block maximum has k tokens at or above it, so nothing below it can be among the first k.
    """
    floor = NEG_INF
    if k <= maxima.size:
        for block in range(maxima.size):
            keys[block] = key_of(maxima[block])
            ids[block] = block
        floor = from_key(select(keys, ids, maxima.size, k, bins)[0])
    floor_key = key_of(floor)
    count = 0
    for block in range(maxima.size):
        if maxima[block] >= floor:
            for i in range(block * BLOCK, min(block * BLOCK + BLOCK, row.size)):
                key = key_of(value_of(row[i]))
                keys[count] = key
                ids[count] = i
                count += key >= floor_key
    key, last = select(keys, ids, count, k, bins)
    return from_key(key), last


@njit(**INLINED)
def min_p_floor(top: Any, temperature: Any, min_p: Any) -> Any:
    """The smallest logit that passes min_p; it rises with `top`, a row's largest logit."""
    return round_up(np.float64(top) + np.float64(temperature) * math.log(np.float64(min_p)))


@njit(**INLINED)
def nucleus_floor(top: Any, temperature: Any, top_p: Any, vocab: Any) -> Any:
    """No token of the nucleus lies below it: even all together, tokens that do cannot hold the mass left out."""
    reach = math.log(vocab / (1.0 - np.float64(top_p))) + 0.01
    return np.float32(np.float64(top) - np.float64(temperature) * reach)


@njit(**INLINED)
def mass_needed(top_p: Any, total: Any) -> Any:
    """The mass that a nucleus has to reach: a token belongs to it if the mass in front of it is less."""
    return max(np.int64(1), np.int64(math.ceil(np.float64(top_p) * np.float64(total))))


@njit(**CALLED)
def mass_near(row: Any, maxima: Any, top: Any, inv_t: Any, value: Any, last: Any, own: Any, token: Any) -> Any:
    """(in front, inside, behind) of a token of logit `own`: the mass in front of it; the mass inside the prefix
    (value, last), but for the blocks that lie wholly behind it; at least what those hold inside the prefix.

    From bounds of the total mass it is mostly clear whether the token lies in the nucleus. `token` may lie outside
    the row, which then is another share's.
    """
    before, inside, behind = np.int64(0), np.int64(0), np.int64(0)
    for block in range(maxima.size):
        largest = maxima[block]
        if not largest >= value or (top - largest) * inv_t > _MASSLESS_GAP:
            continue
        start = block * BLOCK
        size = min(BLOCK, row.size - start)
        if largest < own:
            bound = mass((np.float64(largest) - np.float64(top)) * inv_t)
            # the series is monotone only to 1e-11
            behind += size * (bound + (bound >> 30) + 1)
            continue
        for j in range(size):
            v = value_of(row[start + j])
            held = mass((np.float64(v) - np.float64(top)) * inv_t)
            kept = (v > value) | ((v == value) & (start + j <= last))
            ahead = (v > own) | ((v == own) & (start + j < token))
            inside += held if kept else np.int64(0)
            before += held if ahead else np.int64(0)
    return before, inside, behind


@njit(**CALLED)
def mass_behind(row: Any, maxima: Any, top: Any, inv_t: Any, value: Any, last: Any, own: Any) -> Any:
    """The mass inside the prefix (value, last) of the blocks that hold no logit as large as `own`."""
    total = np.int64(0)
    for block in range(maxima.size):
        largest = maxima[block]
        if not largest >= value or largest >= own or (top - largest) * inv_t > _MASSLESS_GAP:
            continue
        start = block * BLOCK
        for j in range(min(BLOCK, row.size - start)):
            v = value_of(row[start + j])
            held = mass((np.float64(v) - np.float64(top)) * inv_t)
            kept = (v > value) | ((v == value) & (start + j <= last))
            total += held if kept else np.int64(0)
    return total
