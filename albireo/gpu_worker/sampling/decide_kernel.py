"""From all ranks' records of a round to each row's next phase or token (`local_kernels`), on every rank alike."""

from functools import cache
from typing import Any

import numpy as np
from numba import carray, njit

from albireo.gpu_worker.kernels.launch import CALLED, INLINED, Kernel
from albireo.gpu_worker.kernels.simd import fetch_add, pointer
from albireo.gpu_worker.sampling.arguments import ARGUMENTS, record_pointer
from albireo.gpu_worker.sampling.draw import score_of, token_word
from albireo.gpu_worker.sampling.kernels import (
    LAST_ID,
    NEG_INF,
    NO_BOUND,
    from_key,
    key_of,
    mass,
    mass_needed,
    min_p_floor,
    select,
)
from albireo.gpu_worker.sampling.local_kernels import (
    CANDIDATE,
    DONE,
    DRAW,
    DRAWN,
    MASS,
    MASSES,
    OPEN,
    STATE,
    TOTAL,
    candidate_row_of,
)
from albireo.gpu_worker.sampling.row_kernel import scratch_of


@njit(**CALLED)
def _gather_candidates(a: Any, c: Any, value: Any, last: Any, ids: Any, keys: Any) -> Any:
    """Fills in (id, key) of all ranks' candidates in the prefix (value, last), by rising id, and returns how many."""
    count = 0
    for rank in range(a.num_ranks):
        at = a.records + rank * a.record_bytes + a.candidates_at + 8 * c * a.max_candidates
        sent = carray(record_pointer(at, CANDIDATE), (a.max_candidates,))
        for j in range(a.max_candidates):
            token = sent[j].token
            if token < 0:
                break
            v = sent[j].value
            if v > value or (v == value and token <= last):
                ids[count] = token
                keys[count] = key_of(v)
                count += 1
    return count


@njit(**CALLED)
def _best_of(count: Any, value: Any, last: Any, inv_t: Any, key: Any, position: Any, ids: Any, keys: Any) -> Any:
    """Gumbel-max over those of the tokens that lie in the prefix (value, last): the winner's index."""
    best, winner = -np.inf, 0
    for j in range(count):
        v = from_key(keys[j])
        if v > value or (v == value and ids[j] <= last):
            score = score_of(v, inv_t, token_word(key, position, np.int64(ids[j])))
            if score > best:
                best, winner = score, j
    return winner


@njit(**CALLED)
def _merge(
    a: Any, c: Any, top: Any, temperature: Any, top_p: Any, min_p: Any, top_k: Any, key: Any, position: Any, bins: Any,
    ids: Any, keys: Any,
) -> Any:  # fmt: skip
    """The token of a row under top_k: cut at the k-th, then min_p, top_p and the draw among what is left."""
    value, last = NEG_INF, LAST_ID
    count = _gather_candidates(a, c, value, last, ids, keys)
    if top_k < count:
        last_key, last = select(keys, ids, count, np.int64(top_k), bins)
        value = from_key(last_key)
    if min_p > 0.0:
        floor = min_p_floor(top, temperature, min_p)
        if floor > value:
            value, last = floor, LAST_ID
    count = _gather_candidates(a, c, value, last, ids, keys)
    inv_t = 1.0 / np.float64(temperature)
    winner = _best_of(count, value, last, inv_t, key, position, ids, keys)
    if not top_p < 1.0:
        return ids[winner]
    total = np.int64(0)
    for j in range(count):
        total += mass((np.float64(from_key(keys[j])) - np.float64(top)) * inv_t)
    while True:
        own, before = from_key(keys[winner]), np.int64(0)
        for j in range(count):
            v = from_key(keys[j])
            if v > own or (v == own and j < winner):
                before += mass((np.float64(v) - np.float64(top)) * inv_t)
        if before < mass_needed(top_p, total):
            return ids[winner]
        winner = _best_of(count, own, np.int32(ids[winner] - 1), inv_t, key, position, ids, keys)


@njit(**CALLED)
def _take_winner(a: Any, i: Any, state: Any) -> None:
    """The best of the shares' draws."""
    best, winner, value = -np.inf, LAST_ID, NEG_INF
    for rank in range(a.num_ranks):
        sent = carray(record_pointer(a.records + rank * a.record_bytes, DRAWN), (i + 1,))[i]
        if sent.score > best or (sent.score == best and sent.token < winner):
            best, winner, value = sent.score, sent.token, sent.value
    state.winner, state.winner_value = winner, value


@njit(**CALLED)
def _take_top(a: Any, i: Any, state: Any) -> Any:
    """The row's largest logit, into `state`; returns the first token that has it."""
    top, first = NEG_INF, LAST_ID
    for rank in range(a.num_ranks):
        sent = carray(record_pointer(a.records + rank * a.record_bytes, DRAWN), (i + 1,))[i]
        if sent.top > top or (sent.top == top and sent.first < first):
            top, first = sent.top, sent.first
    state.top = top
    return first


@njit(**CALLED)
def _take_masses(a: Any, i: Any, state: Any) -> None:
    """The mass in front of the winner, and closer bounds of the total."""
    before, inside, behind = np.int64(0), np.int64(0), np.int64(0)
    for rank in range(a.num_ranks):
        sent = carray(record_pointer(a.records + rank * a.record_bytes, MASSES), (i + 1,))[i]
        before += sent.before
        inside += sent.inside
        behind += sent.behind
    if state.phase == MASS:
        state.before, state.inside = before, inside
        state.lower, state.upper = max(state.lower, inside), min(state.upper, inside + behind)
    else:
        state.lower = state.inside + behind
        state.upper = state.lower


@njit(**INLINED)
def _after_draw(state: Any, top_p: Any, tokens: Any, r: Any) -> None:
    """A winner over min_p's floor: the token, unless top_p has a say."""
    if top_p < 1.0:
        state.phase = MASS
    else:
        state.phase, tokens[r] = DONE, state.winner


@njit(**CALLED)
def _decide(a: Any, i: Any, r: Any, tokens: Any, scratch: Any) -> None:
    slot = pointer(a.slots, np.int32)[r]
    temperature, top_p = pointer(a.temperature, np.float32)[slot], pointer(a.top_p, np.float32)[slot]
    state = carray(record_pointer(a.state, STATE), (r + 1,))[r]
    if state.phase == OPEN:
        first = _take_top(a, i, state)
        state.lower, state.upper = 0, NO_BOUND
        c = candidate_row_of(a, r)
        if not temperature > 0.0 or abs(state.top) == np.float32(np.inf):
            state.phase, tokens[r] = DONE, first
            return
        min_p = pointer(a.min_p, np.float32)[slot]
        if c >= 0:
            key, position = np.uint64(pointer(a.seed, np.int64)[slot]), np.uint64(pointer(a.positions, np.int64)[r])
            top_k = pointer(a.top_k, np.int32)[slot]
            _, bins, ids, keys = scratch
            tokens[r] = _merge(a, c, state.top, temperature, top_p, min_p, top_k, key, position, bins, ids, keys)
            state.phase = DONE
            return
        _take_winner(a, i, state)
        state.floor = min_p_floor(state.top, temperature, min_p) if min_p > 0.0 else NEG_INF
        if state.winner_value < state.floor:
            state.phase, state.bound, state.bound_last = DRAW, state.floor, LAST_ID
        else:
            _after_draw(state, top_p, tokens, r)
    elif state.phase == DRAW:
        _take_winner(a, i, state)
        _after_draw(state, top_p, tokens, r)
    else:
        _take_masses(a, i, state)
        if state.before < mass_needed(top_p, state.lower):
            state.phase, tokens[r] = DONE, state.winner
        elif state.before < mass_needed(top_p, state.upper):
            state.phase = TOTAL
        else:
            state.phase, state.bound, state.bound_last = DRAW, state.winner_value, state.winner - 1


@cache
def decide_kernel() -> Kernel:
    """Takes the rows in `rows` to their next phase, and those that are then DONE to `tokens`."""

    def decide(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        rows, tokens = pointer(a.rows, np.int32), pointer(a.tokens, np.int32)
        scratch = scratch_of(a, fetch_add(a.counters + 8, 1))
        while True:
            i = fetch_add(a.counters, 1)
            if i >= a.num_rows:
                return
            _decide(a, i, np.int64(rows[i]), tokens, scratch)

    return Kernel(decide, ARGUMENTS)
