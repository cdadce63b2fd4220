"""A row's token from what the kernels before have found: the best split's, or the draw among what the filters keep.

A nucleus is drawn from without a search for its edge, as on the CPU (`sampling.row_kernel`): the winner of the draw
among all tokens counts if the mass in front of it is less than needed, otherwise the draw is repeated among those in
front of it. That takes at most 1 + ln(1 / top_p) rounds on average.
"""

import triton
import triton.language as tl

from albireo.gpu_worker.cuda.kernels.admission import (
    MIN_P,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    float_of,
    int_of,
    is_adjusted,
    is_filtered,
    is_live,
    seed_of,
)
from albireo.gpu_worker.cuda.kernels.gather_candidates import largest_of_row, min_p_floor
from albireo.gpu_worker.cuda.kernels.noise import best_of_tile, words_of_ids
from albireo.gpu_worker.cuda.kernels.ordered_logits import (
    KEY_INF,
    KEY_NEG_INF,
    LAST_ID,
    NO_KEY,
    load_keys,
    mass_of_keys,
)


@triton.jit
def load_entries(found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, start, VOCAB: tl.constexpr,
                 TILE: tl.constexpr):  # fmt: skip
    """(keys, ids) of entries from `start` on, of the row's list or of the row itself; NO_KEY beyond the end."""
    entry = start + tl.arange(0, TILE)
    if use_row:
        keys, ids = load_keys(logits, adjusted, use_adjusted, entry, VOCAB), entry
    else:
        keys = tl.load(found_keys + entry, mask=entry < num_found, other=NO_KEY)
        ids = tl.load(found_ids + entry, mask=entry < num_found, other=LAST_ID)
    return keys, ids


@triton.jit
def _inside(keys, ids, cut_key, cut_id):
    """Whether entries lie in the prefix (cut_key, cut_id)."""
    return (keys > cut_key) | ((keys == cut_key) & (ids <= cut_id))


@triton.jit
def _count_inside(found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, cut_key, cut_id,
                  VOCAB: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    count = tl.full((), 0, tl.int32)
    for start in range(0, tl.where(use_row, VOCAB, num_found), TILE):
        keys, ids = load_entries(
            found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, start, VOCAB, TILE
        )
        count += tl.sum(_inside(keys, ids, cut_key, cut_id).to(tl.int32), 0)
    return count


@triton.jit
def _mass_inside(found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, cut_key, cut_id, top_key,
                 inv_t, VOCAB: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    mass = tl.full((), 0, tl.int64)
    for start in range(0, tl.where(use_row, VOCAB, num_found), TILE):
        keys, ids = load_entries(
            found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, start, VOCAB, TILE
        )
        inside = _inside(keys, ids, cut_key, cut_id)
        if tl.max(inside.to(tl.int32), 0) > 0:
            mass += tl.sum(tl.where(inside, mass_of_keys(keys, top_key, inv_t), 0), 0)
    return mass


@triton.jit
def _draw_inside(found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, cut_key, cut_id, inv_t,
                 seed, position, VOCAB: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Gumbel-max over the prefix."""
    best, winner = tl.full((), float("-inf"), tl.float64), tl.full((), LAST_ID, tl.int32)
    for start in range(0, tl.where(use_row, VOCAB, num_found), TILE):
        keys, ids = load_entries(
            found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, start, VOCAB, TILE
        )
        inside = _inside(keys, ids, cut_key, cut_id)
        if tl.max(inside.to(tl.int32), 0) > 0:
            keys = tl.where(inside, keys, NO_KEY)
            best, winner = best_of_tile(keys, ids, words_of_ids(seed, position, ids), inv_t, best, winner)
    return winner


@triton.jit
def _first_k(found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, low_key, top_key, k,
             VOCAB: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """The end of the prefix of k tokens; of all from `low_key` on where they are fewer."""
    low, high = low_key.to(tl.int64), top_key.to(tl.int64)
    cut_id = tl.full((), LAST_ID, tl.int32)
    count = _count_inside(
        found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, low_key, cut_id, VOCAB, TILE
    )
    if count > k:
        while low < high:
            middle = low + ((high - low + 1) >> 1)
            reached = _count_inside(
                found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, middle.to(tl.int32),
                LAST_ID, VOCAB, TILE,
            )  # fmt: skip
            if reached >= k:
                low = middle
                count = reached
            else:
                high = middle - 1
    cut_key = low.to(tl.int32)
    if count > k:  # not all that tie with the last one are kept
        low_id, high_id = tl.full((), 0, tl.int32), tl.full((), VOCAB - 1, tl.int32)
        while low_id < high_id:
            middle_id = (low_id + high_id) >> 1
            reached = _count_inside(
                found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, cut_key, middle_id, VOCAB,
                TILE,
            )  # fmt: skip
            if reached >= k:
                high_id = middle_id
            else:
                low_id = middle_id + 1
        cut_id = low_id
    return cut_key, cut_id


@triton.jit
def _mass_needed(top_p, total):
    """The mass that a nucleus has to reach: a token belongs to it if the mass in front of it is less."""
    return tl.maximum(tl.ceil(top_p.to(tl.float64) * total.to(tl.float64)).to(tl.int64), 1)


@triton.jit
def _sum_of_splits(masses, num_splits, SPLITS: tl.constexpr):
    split = tl.arange(0, SPLITS)
    return tl.sum(tl.load(masses + split, mask=split < num_splits, other=0), 0)


@triton.jit
def _filtered_token(
    logits, adjusted, use_adjusted, top_key, temperature, top_p, min_p, top_k, seed, position, found_keys, found_ids,
    num_found, floor, masses, num_splits, VOCAB: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    CAPACITY: tl.constexpr,
):  # fmt: skip
    """The draw of a row whose largest logit is finite."""
    inv_t = 1.0 / temperature.to(tl.float64)
    use_row = num_found > CAPACITY
    cut_key, cut_id = tl.where(use_row, min_p_floor(top_key, temperature, min_p), floor), tl.full((), LAST_ID, tl.int32)
    need = tl.full((), 0, tl.int64)
    if (top_k > 0) & (top_k < VOCAB):
        cut_key, cut_id = _first_k(
            found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, cut_key, top_key, top_k, VOCAB,
            TILE,
        )  # fmt: skip
        if top_p < 1.0:
            total = _mass_inside(
                found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, cut_key, cut_id, top_key,
                inv_t, VOCAB, TILE,
            )  # fmt: skip
            need = _mass_needed(top_p, total)
    elif top_p < 1.0:
        need = _mass_needed(top_p, _sum_of_splits(masses, num_splits, SPLITS))
        if use_row == 0:
            listed = _mass_inside(
                found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, cut_key, cut_id, top_key,
                inv_t, VOCAB, TILE,
            )  # fmt: skip
            if listed < need:  # the floor was too high
                use_row = num_found >= 0
                cut_key = min_p_floor(top_key, temperature, min_p)

    winner = tl.full((), 0, tl.int32)
    is_open = tl.full((), 1, tl.int32)
    while is_open > 0:
        winner = _draw_inside(
            found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, cut_key, cut_id, inv_t, seed,
            position, VOCAB, TILE,
        )  # fmt: skip
        is_open = tl.full((), 0, tl.int32)
        if top_p < 1.0:
            winner_key = load_keys(logits, adjusted, use_adjusted, winner, VOCAB)
            before = _mass_inside(
                found_keys, found_ids, num_found, logits, adjusted, use_adjusted, use_row, winner_key, winner - 1,
                top_key, inv_t, VOCAB, TILE,
            )  # fmt: skip
            if before >= need:
                cut_key, cut_id = winner_key, winner - 1
                is_open = tl.full((), 1, tl.int32)
    return winner


@triton.jit(do_not_specialize=["num_splits"])
def choose_tokens(
    logits, stride, adjusted, admissions, slots, alive, positions, tops, firsts, scores, winners, num_found, found_keys,
    found_ids, floors, masses, tokens, num_splits, VOCAB: tl.constexpr, TILE: tl.constexpr, MAX_SPLITS: tl.constexpr,
    SPLITS: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Grid: (rows,). Writes `tokens`, int32 [rows]: -1 for a row that is dead or padding, WAITED for one whose slot
    is that."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    token = tl.minimum(slot, -1)
    if is_live(slot, alive):
        temperature = float_of(admissions, slot, TEMPERATURE)
        filtered = is_filtered(admissions, slot)
        split = tl.arange(0, SPLITS)
        inside, partial = split < num_splits, row * MAX_SPLITS + split
        if (temperature > 0.0) & (filtered == 0):
            score = tl.load(scores + partial, mask=inside, other=float("-inf"))
            ids = tl.load(winners + partial, mask=inside, other=LAST_ID)
            token = tl.min(tl.where(score == tl.max(score, 0), ids, LAST_ID), 0)
        else:
            top_key = largest_of_row(tops + row * MAX_SPLITS, num_splits, SPLITS)
            if filtered & (top_key > KEY_NEG_INF) & (top_key < KEY_INF):
                position = tl.load(positions + row)
                token = _filtered_token(
                    logits + row * stride, adjusted + row * VOCAB, is_adjusted(admissions, slot, position), top_key,
                    temperature, float_of(admissions, slot, TOP_P), float_of(admissions, slot, MIN_P),
                    int_of(admissions, slot, TOP_K), seed_of(admissions, slot), position, found_keys + row * CAPACITY,
                    found_ids + row * CAPACITY, tl.load(num_found + row), tl.load(floors + row),
                    masses + row * MAX_SPLITS, num_splits, VOCAB, TILE, SPLITS, CAPACITY,
                )  # fmt: skip
            else:
                keys = tl.load(tops + partial, mask=inside, other=NO_KEY)
                ids = tl.load(firsts + partial, mask=inside, other=LAST_ID)
                token = tl.min(tl.where(keys == top_key, ids, LAST_ID), 0)
    tl.store(tokens + row, token)
