"""Log-probabilities of given tokens and of the most likely ones, from t ranks' shares of the logits.

In two passes, each followed by a gather: what a rank finds in its share (SURVEY: the largest logit, and the target's
if the share holds it; WEIGH: the mass relative to the row's largest logit, how many logits are larger than the
target's, the most likely tokens) is merged on every rank alike. The merging is of integers, maxima and ordered lists,
so it gives the same bits for any number of ranks (`logprob_merge`).
"""

from functools import cache
from typing import Any, Final

import numpy as np
from numba import carray, njit

from albireo.gpu_worker.kernels.launch import CALLED, INLINED, Kernel
from albireo.gpu_worker.kernels.simd import fetch_add, offset, pointer
from albireo.gpu_worker.sampling.arguments import record_pointer
from albireo.gpu_worker.sampling.kernels import (
    BLOCK,
    MASS_BITS,
    NEG_INF,
    NUM_BINS,
    block_maxima,
    from_key,
    key_of,
    mass,
    top_k_prefix,
    value_of,
)

SURVEYED: Final = np.dtype([("top", "<f4"), ("target", "<f4")])
"""The share's largest logit and the target's; -inf where the share holds no token, or not the target."""
WEIGHED: Final = np.dtype([("mass", "<i8"), ("num_larger", "<i8")])
"""The share's mass and how many of its logits are larger than the target's; `max_top` CANDIDATEs follow."""
CANDIDATE: Final = np.dtype([("value", "<f4"), ("token", "<i4")])
"""By falling logit and rising id; token -1 ends the list."""

SURVEY: Final = 1
WEIGH: Final = 2
BOTH: Final = SURVEY | WEIGH
"""On one rank, which needs nobody's answer between the two: while the row is in the cache."""

ARGUMENTS: Final = np.dtype(
    [
        (name, "<i8")
        for name in (
            "counters",  # int64 [2], 0 at first: rows that threads have taken; threads that have come
            "passes",  # SURVEY, WEIGH or BOTH
            "num_rows",
            "num_ranks",
            "logits",
            "stride",  # elements from row to row
            "start",  # the share: token ids [start, start + size)
            "size",
            "targets",  # int32 [num_rows]
            "num_top",  # int32 [num_rows], at most max_top
            "max_top",
            "surveyed",  # SURVEYED [num_rows]: what the rank sends
            "all_surveyed",  # SURVEYED [num_ranks, num_rows]
            "weighed",  # num_rows records of weighed_bytes: what the rank sends
            "all_weighed",  # num_ranks times as many
            "weighed_bytes",
            "num_blocks",
            "maxima",  # float32 [num_rows, num_blocks], kept between the passes
            "scratch_width",
            "bins",  # int64 [num_threads, NUM_BINS]
            "ids",  # int32 [num_threads, scratch_width]
            "keys",  # int32 [num_threads, scratch_width]
            "heads",  # int64 [num_ranks]: next candidate of each rank's list
            "out",  # LOGPROB [num_rows]
        )
    ]
)

_CANDIDATES_AT: Final = WEIGHED.itemsize
_MASSLESS_GAP: Final = 31.0
"""e^-31 < 2^-44"""
_INF: Final = np.float32(np.inf)


@njit(**CALLED)
def _survey(row: Any, target: Any, maxima: Any, record: Any) -> None:
    """`target` is counted from the begin of the share."""
    record.top = block_maxima(row, maxima)
    record.target = NEG_INF
    if target >= 0 and target < row.size:
        record.target = from_key(key_of(value_of(row[target])))


@njit(**INLINED)
def merged_survey(a: Any, r: Any) -> Any:
    """(the row's largest logit, the target's)"""
    surveyed = carray(record_pointer(a.all_surveyed, SURVEYED), (a.num_ranks * a.num_rows,))
    top, target = key_of(NEG_INF), key_of(NEG_INF)
    for rank in range(a.num_ranks):
        sent = surveyed[rank * a.num_rows + r]
        top, target = max(top, key_of(sent.top)), max(target, key_of(sent.target))
    return from_key(top), from_key(target)


@njit(**CALLED)
def _mass_of(row: Any, maxima: Any, top: Any) -> Any:
    """The share's mass relative to the finite `top`; of a `top` of +inf the limit: all mass is on the tokens there."""
    total = np.int64(0)
    for block in range(maxima.size):
        start = block * BLOCK
        size = min(BLOCK, row.size - start)
        if top == _INF:
            for j in range(size):
                total += np.int64(value_of(row[start + j]) == _INF) << MASS_BITS
        elif np.float64(top) - np.float64(maxima[block]) <= _MASSLESS_GAP:
            for j in range(size):
                total += mass(np.float64(value_of(row[start + j])) - np.float64(top))
    return total


@njit(**CALLED)
def _num_larger(row: Any, maxima: Any, value: Any) -> Any:
    total = np.int64(0)
    for block in range(maxima.size):
        if maxima[block] > value:
            start = block * BLOCK
            larger = np.int32(0)
            for j in range(min(BLOCK, row.size - start)):
                larger += np.int32(value_of(row[start + j]) > value)
            total += larger
    return total


@njit(**CALLED)
def _insert(out: Any, count: Any, value: Any, token: Any) -> None:
    """Enters a token in a list by falling logit; ids come ascending, so it goes behind its equals."""
    at = count
    while at > 0 and out[at - 1].value < value:
        out[at].value, out[at].token = out[at - 1].value, out[at - 1].token
        at -= 1
    out[at].value, out[at].token = value, token


@njit(**CALLED)
def _send_top(row: Any, start: Any, num_top: Any, maxima: Any, bins: Any, ids: Any, keys: Any, out: Any) -> None:
    """The first `num_top` tokens of the share, fewer where it has fewer."""
    count = np.int64(0)
    num_top = min(num_top, row.size)
    if num_top > 0:
        value, last = top_k_prefix(row, num_top, maxima, bins, ids, keys)
        last_key = key_of(value)
        for block in range(maxima.size):
            if maxima[block] >= value:
                for i in range(block * BLOCK, min(block * BLOCK + BLOCK, row.size)):
                    key = key_of(value_of(row[i]))
                    if key > last_key or (key == last_key and i <= last):
                        _insert(out, count, from_key(key), np.int32(start + i))
                        count += 1
    for j in range(count, out.size):
        out[j].value, out[j].token = NEG_INF, np.int32(-1)


@njit(**INLINED)
def candidates_at(a: Any, address: Any) -> Any:
    """Those behind the WEIGHED record at `address`."""
    return carray(record_pointer(address + _CANDIDATES_AT, CANDIDATE), (a.max_top,))


@njit(**CALLED)
def _weigh(a: Any, row: Any, r: Any, maxima: Any, bins: Any, ids: Any, keys: Any) -> None:
    top, target = merged_survey(a, r)
    address = a.weighed + r * a.weighed_bytes
    record = carray(record_pointer(address, WEIGHED), (1,))[0]
    record.mass, record.num_larger = np.int64(0), _num_larger(row, maxima, target)
    if top > NEG_INF:
        record.mass = _mass_of(row, maxima, top)
    num_top = np.int64(pointer(a.num_top, np.int32)[r])
    _send_top(row, a.start, num_top, maxima, bins, ids, keys, candidates_at(a, address))


@cache
def score_kernel(element: type[np.generic]) -> Kernel:
    """This rank's records of all rows, of one pass or both. `element`: np.uint16 for bf16, np.float32."""

    def score(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        thread = fetch_add(a.counters + 8, 1)
        bins = carray(offset(pointer(a.bins, np.int64), thread * NUM_BINS), (NUM_BINS,))
        ids = carray(offset(pointer(a.ids, np.int32), thread * a.scratch_width), (a.scratch_width,))
        keys = carray(offset(pointer(a.keys, np.int32), thread * a.scratch_width), (a.scratch_width,))
        while True:
            r = fetch_add(a.counters, 1)
            if r >= a.num_rows:
                return
            row = carray(offset(pointer(a.logits, element), r * a.stride), (a.size,))
            maxima = carray(offset(pointer(a.maxima, np.float32), r * a.num_blocks), (a.num_blocks,))
            if a.passes & SURVEY:
                record = carray(record_pointer(a.surveyed, SURVEYED), (r + 1,))[r]
                _survey(row, np.int64(pointer(a.targets, np.int32)[r]) - a.start, maxima, record)
            if a.passes & WEIGH:
                _weigh(a, row, r, maxima, bins, ids, keys)

    return Kernel(score, ARGUMENTS)
