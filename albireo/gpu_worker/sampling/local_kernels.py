"""What a rank does with its share of the rows in local mode, round after round.

Every row is in a phase, the same on all ranks. `share_kernel` looks at the rank's share of the rows and writes a
record of 24 bytes for each; the records are gathered; from all ranks' records `decide_kernel` takes each row to its
next phase or to its token, on every rank alike:

OPEN   the share's largest logit, and Gumbel-max over what may lie in min_p's and top_p's prefix, as far as the share
       alone can tell: a prefix that may be too long, never too short. Greedy rows and rows without filters are done.
       Rows under top_k are too: their shares send the first top_k tokens (`merge`).
DRAW   Gumbel-max over the tokens in front of a bound: min_p's floor, if the token drawn lies below it, or a token that
       lies behind the nucleus. The winner over a longer prefix is the winner over the nucleus if it lies inside.
MASS   the mass in front of the token drawn, and bounds of the total: mostly enough to say whether it is in the nucleus.
TOTAL  the exact total mass, where the bounds are not.
"""

from functools import cache
from typing import Any, Final

import numpy as np
from numba import carray, njit

from albireo.gpu_worker.kernels.launch import CALLED, INLINED, Kernel
from albireo.gpu_worker.kernels.simd import fetch_add, offset, pointer
from albireo.gpu_worker.sampling.arguments import ARGUMENTS, Element, record_pointer
from albireo.gpu_worker.sampling.draw import draw
from albireo.gpu_worker.sampling.kernels import (
    BLOCK,
    LAST_ID,
    NEG_INF,
    block_maxima,
    first_equal,
    mass_behind,
    mass_near,
    min_p_floor,
    nucleus_floor,
    top_k_prefix,
    value_of,
)
from albireo.gpu_worker.sampling.row_kernel import adjusted_index, adjusted_row, row_of, scratch_of

DONE: Final = 0
"""A row that has its token."""
OPEN: Final = 1
DRAW: Final = 2
MASS: Final = 3
TOTAL: Final = 4

STATE: Final = np.dtype(
    [
        ("phase", "<i4"),
        ("winner", "<i4"),  # the token drawn last
        ("winner_value", "<f4"),
        ("top", "<f4"),  # the row's largest logit
        ("floor", "<f4"),  # min_p's
        ("bound", "<f4"),  # a draw is among the tokens up to this logit,
        ("bound_last", "<i4"),  # and of those that have it up to this id
        ("share_top", "<f4"),  # the rank's own: the share's largest logit,
        ("share_first", "<i8"),  # and the first that has it, counted from the share's begin
        ("before", "<i8"),  # mass in front of the winner
        ("inside", "<i8"),  # mass counted in MASS
        ("lower", "<i8"),  # bounds of the total mass
        ("upper", "<i8"),
    ]
)
"""Of a row of the batch."""
DRAWN: Final = np.dtype([("score", "<f8"), ("value", "<f4"), ("token", "<i4"), ("top", "<f4"), ("first", "<i4")])
"""A share's answer in OPEN and DRAW: the winner, or LAST_ID with a score of -inf where there is none; in OPEN also the
largest logit and the first token that has it, LAST_ID in a share without tokens."""
MASSES: Final = np.dtype([("before", "<i8"), ("inside", "<i8"), ("behind", "<i8")])
"""A share's answer in MASS (`kernels.mass_near`) and TOTAL (`behind` alone, exact)."""
CANDIDATE: Final = np.dtype([("value", "<f4"), ("token", "<i4")])
"""A token of a row under top_k, by rising id; -1 ends the list. The logit is float32 also for bf16 rows."""
RECORD_BYTES: Final = DRAWN.itemsize


@njit(**INLINED)
def candidate_row_of(a: Any, r: Any) -> Any:
    """Where the candidates of row `r` lie among those of all rows, -1 if it is not decided from candidates."""
    return np.int64(pointer(a.candidate_rows, np.int32)[r]) if a.max_candidates else np.int64(-1)


@njit(**CALLED)
def _open(
    row: Any, base: Any, state: Any, record: Any, is_drawn: Any, temperature: Any, top_p: Any, min_p: Any, vocab: Any,
    key: Any, position: Any, maxima: Any, noise: Any,
) -> None:  # fmt: skip
    top = block_maxima(row, maxima)
    first = first_equal(row, maxima, top)
    state.share_top, state.share_first = top, first
    record.top = top
    record.first = np.int32(base + first) if row.size > 0 else LAST_ID
    record.score, record.value, record.token = -np.inf, NEG_INF, LAST_ID
    if not is_drawn or not temperature > 0.0 or abs(top) == np.float32(np.inf):
        return
    bound = NEG_INF
    if min_p > 0.0:
        bound = min_p_floor(top, temperature, min_p)
    if top_p < 1.0:
        bound = max(bound, nucleus_floor(top, temperature, top_p, vocab))
    inv_t = 1.0 / np.float64(temperature)
    winner, score = draw(row, base, first, top, inv_t, key, position, bound, np.int64(LAST_ID), maxima, noise)
    record.score, record.value, record.token = score, value_of(row[winner]), np.int32(base + winner)


@njit(**CALLED)
def _draw_again(
    row: Any, base: Any, state: Any, record: Any, temperature: Any, key: Any, position: Any, maxima: Any, noise: Any
) -> None:
    record.score, record.value, record.token = -np.inf, NEG_INF, LAST_ID
    top, first, last = state.share_top, state.share_first, np.int64(state.bound_last) - base
    in_front = top > state.bound or (top == state.bound and first <= last)
    if row.size == 0 or top == NEG_INF or not in_front:
        return
    inv_t = 1.0 / np.float64(temperature)
    winner, score = draw(row, base, first, top, inv_t, key, position, state.bound, last, maxima, noise)
    record.score, record.value, record.token = score, value_of(row[winner]), np.int32(base + winner)


@njit(**CALLED)
def _weigh(row: Any, base: Any, state: Any, record: Any, temperature: Any, maxima: Any) -> None:
    inv_t, own, last = 1.0 / np.float64(temperature), state.winner_value, np.int64(LAST_ID)
    if state.phase == MASS:
        token = np.int64(state.winner) - base
        before, inside, behind = mass_near(row, maxima, state.top, inv_t, state.floor, last, own, token)
        record.before, record.inside, record.behind = before, inside, behind
    else:
        record.before, record.inside = 0, 0
        record.behind = mass_behind(row, maxima, state.top, inv_t, state.floor, last, own)


@njit(**CALLED)
def _send_candidates(
    row: Any, base: Any, top_k: Any, out: Any, maxima: Any, bins: Any, ids: Any, keys: Any, top: Any
) -> None:
    """The first `top_k` tokens of the share, by rising id."""
    count = 0
    if abs(top) < np.float32(np.inf):
        value, last = top_k_prefix(row, min(np.int64(top_k), row.size), maxima, bins, ids, keys)
        for block in range(maxima.size):
            if maxima[block] >= value:
                for i in range(block * BLOCK, min(block * BLOCK + BLOCK, row.size)):
                    v = value_of(row[i])
                    if v > value or (v == value and i <= last):
                        out[count].value, out[count].token = v, np.int32(base + i)
                        count += 1
    if count < out.size:
        out[count].token = -1


@njit(**CALLED)
def _answer(a: Any, row: Any, i: Any, r: Any, scratch: Any) -> None:
    """The share's record number `i`, of the batch's row `r`."""
    slot, position = pointer(a.slots, np.int32)[r], np.uint64(pointer(a.positions, np.int64)[r])
    temperature, key = pointer(a.temperature, np.float32)[slot], np.uint64(pointer(a.seed, np.int64)[slot])
    state = carray(record_pointer(a.state, STATE), (r + 1,))[r]
    maxima = carray(offset(pointer(a.maxima, np.float32), r * a.num_blocks), (a.num_blocks,))
    noise, bins, ids, keys = scratch
    if state.phase >= MASS:
        record = carray(record_pointer(a.records, MASSES), (i + 1,))[i]
        _weigh(row, a.base, state, record, temperature, maxima)
        return
    answer = carray(record_pointer(a.records, DRAWN), (i + 1,))[i]
    if state.phase == DRAW:
        _draw_again(row, a.base, state, answer, temperature, key, position, maxima, noise)
        return
    candidate_row = candidate_row_of(a, r)
    top_p, min_p = pointer(a.top_p, np.float32)[slot], pointer(a.min_p, np.float32)[slot]
    _open(
        row, a.base, state, answer, candidate_row < 0, temperature, top_p, min_p, a.vocab, key, position, maxima, noise
    )
    if candidate_row >= 0:
        out = carray(
            record_pointer(a.records + a.candidates_at + 8 * candidate_row * a.max_candidates, CANDIDATE),
            (a.max_candidates,),
        )
        top_k = pointer(a.top_k, np.int32)[slot]
        _send_candidates(row, a.base, top_k, out, maxima, bins, ids, keys, state.share_top)


@cache
def share_kernel(element: Element) -> Kernel:
    """This rank's records of the rows in `rows`. `element`: np.uint16 for bf16, np.float32."""

    def share(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        logits, rows = pointer(a.logits, element), pointer(a.rows, np.int32)
        scratch = scratch_of(a, fetch_add(a.counters + 8, 1))
        while True:
            i = fetch_add(a.counters, 1)
            if i >= a.num_rows:
                return
            r = np.int64(rows[i])
            adjusted = adjusted_index(a, r)
            if adjusted >= 0:
                _answer(a, adjusted_row(a, adjusted), i, r, scratch)
            else:
                _answer(a, row_of(a, logits, r), i, r, scratch)

    return Kernel(share, ARGUMENTS)
