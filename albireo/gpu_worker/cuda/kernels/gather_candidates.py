"""Of each filtered row the tokens that can matter, in a short list in no order, and the mass that top_p counts over.

Whatever lies below a floor is left out. The floor is a guess that cannot harm: the first k tokens are wanted, and k
blocks of the row have a maximum at or above it; or a nucleus is wanted, and `choose_tokens` sees from the list's mass
whether all of it is there. A list that overflows is not used: the row itself is.
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
)
from albireo.gpu_worker.cuda.kernels.ordered_logits import (
    KEY_INF,
    KEY_NEG_INF,
    NO_KEY,
    key_at_least,
    load_keys,
    mass_of_keys,
    value_of,
)


@triton.jit
def largest_of_row(tops, num_splits, SPLITS: tl.constexpr):
    """`SPLITS`: a power of two that is not less."""
    split = tl.arange(0, SPLITS)
    return tl.max(tl.load(tops + split, mask=split < num_splits, other=NO_KEY), 0)


@triton.jit
def min_p_floor(top_key, temperature, min_p):
    """The smallest key that passes min_p."""
    floor = tl.full((), KEY_NEG_INF, tl.int32)
    if min_p > 0.0:
        reach = temperature.to(tl.float64) * tl.log(min_p.to(tl.float64))
        floor = tl.maximum(floor, key_at_least(value_of(top_key).to(tl.float64) + reach))
    return floor


@triton.jit
def nucleus_floor(top_key, temperature, top_p, VOCAB: tl.constexpr):
    """No token of the nucleus lies below it: even all together, tokens that do cannot hold the mass left out."""
    reach = tl.log(VOCAB / (1.0 - top_p.to(tl.float64))) + 0.01
    return key_at_least(value_of(top_key).to(tl.float64) - temperature.to(tl.float64) * reach)


@triton.jit
def floor_of_first(maxima, count, NUM_BLOCKS: tl.constexpr, BLOCKS: tl.constexpr):
    """A key that `count` tokens reach, found in the maxima of the row's blocks; -inf's where there are fewer blocks.
    `BLOCKS`: a power of two, not less than NUM_BLOCKS."""
    block = tl.arange(0, BLOCKS)
    keys = tl.load(maxima + block, mask=block < NUM_BLOCKS, other=NO_KEY)
    low = tl.full((), KEY_NEG_INF, tl.int64)
    if count <= NUM_BLOCKS:
        low = tl.min(tl.where(block < NUM_BLOCKS, keys, 0x7FFFFFFF), 0).to(tl.int64)
        high = tl.max(keys, 0).to(tl.int64)
        for _ in range(16):  # to 2^-16 of the range: what is missing makes the list a little longer
            middle = low + ((high - low + 1) >> 1)
            if tl.sum((keys >= middle).to(tl.int32), 0) >= count:
                low = middle
            else:
                high = middle - 1
    return low.to(tl.int32)


@triton.jit
def gather_split(logits, adjusted, use_adjusted, floor, lowest, top_key, inv_t, wants_mass, num_found, found_keys,
                 found_ids, first_tile, last_tile, VOCAB: tl.constexpr, TILE: tl.constexpr,
                 CAPACITY: tl.constexpr):  # fmt: skip
    """Appends the split's tokens of keys >= `floor` to the row's list, and returns the mass of those >= `lowest`."""
    mass = tl.full((), 0, tl.int64)
    for tile in range(first_tile, last_tile):
        ids = tile * TILE + tl.arange(0, TILE)
        keys = load_keys(logits, adjusted, use_adjusted, ids, VOCAB)
        found = keys >= floor
        count = tl.sum(found.to(tl.int32), 0)
        if count > 0:
            place = tl.atomic_add(num_found, count) + tl.cumsum(found.to(tl.int32), 0) - 1
            fits = found & (place < CAPACITY)
            tl.store(found_keys + place, keys, mask=fits)
            tl.store(found_ids + place, ids, mask=fits)
        if wants_mass:
            if top_key == KEY_INF:
                mass += tl.sum((keys == KEY_INF).to(tl.int64), 0) << 44
            else:
                counts = keys >= lowest
                mass += tl.sum(tl.where(counts, mass_of_keys(keys, top_key, inv_t), 0), 0)
    return mass


@triton.jit(do_not_specialize=["tiles_per_split", "num_splits"])
def gather_candidates(
    logits, stride, adjusted, admissions, slots, alive, positions, maxima, tops, num_found, found_keys, found_ids,
    floors, masses, tiles_per_split, num_splits, VOCAB: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    MAX_SPLITS: tl.constexpr, SPLITS: tl.constexpr, BLOCKS: tl.constexpr, GUESS: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Grid: (rows, splits), like `survey_rows`, from which `maxima`, `tops` and `num_found` come.

    num_found  int32 [rows]: tokens at or above the floor
    found_keys, found_ids  int32 [rows, CAPACITY]
    floors     int32 [rows]
    masses     int64 [rows, MAX_SPLITS]: of the tokens that min_p leaves; where top_p is on and top_k is off
    """
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row)
    if is_live(slot, alive):  # noqa: SIM102, of a dead row's slot nothing may be read
        if is_filtered(admissions, slot):
            top_key = largest_of_row(tops + row * MAX_SPLITS, num_splits, SPLITS)
            if (top_key > KEY_NEG_INF) & (top_key < KEY_INF):
                temperature, top_p = float_of(admissions, slot, TEMPERATURE), float_of(admissions, slot, TOP_P)
                top_k = int_of(admissions, slot, TOP_K)
                has_top_k = (top_k > 0) & (top_k < VOCAB)
                lowest = min_p_floor(top_key, temperature, float_of(admissions, slot, MIN_P))
                floor = lowest
                blocks = maxima + row * (MAX_SPLITS * (TILE // BLOCK))
                if has_top_k | (top_p < 1.0):
                    count = tl.where(has_top_k, top_k, GUESS)
                    floor = tl.maximum(floor, floor_of_first(blocks, count, (VOCAB + BLOCK - 1) // BLOCK, BLOCKS))
                if (top_p < 1.0) & (has_top_k == 0):
                    floor = tl.maximum(floor, nucleus_floor(top_key, temperature, top_p, VOCAB))
                tl.store(floors + row, floor, mask=split == 0)
                first_tile = split * tiles_per_split
                mass = gather_split(
                    logits + row * stride, adjusted + row * VOCAB,
                    is_adjusted(admissions, slot, tl.load(positions + row)), floor, lowest, top_key,
                    1.0 / temperature.to(tl.float64), (top_p < 1.0) & (has_top_k == 0), num_found + row,
                    found_keys + row * CAPACITY, found_ids + row * CAPACITY, first_tile,
                    tl.minimum(first_tile + tiles_per_split, (VOCAB + TILE - 1) // TILE), VOCAB, TILE, CAPACITY,
                )  # fmt: skip
                tl.store(masses + row * MAX_SPLITS + split, mass)
