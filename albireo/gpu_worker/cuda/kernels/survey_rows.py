"""The first look at a batch's rows, each cut into splits: the largest logit, and the draw of rows without a filter."""

import triton
import triton.language as tl

from albireo.gpu_worker.cuda.kernels.admission import (
    TEMPERATURE,
    float_of,
    is_adjusted,
    is_filtered,
    is_live,
    seed_of,
)
from albireo.gpu_worker.cuda.kernels.noise import best_of_tile, words_of_tile
from albireo.gpu_worker.cuda.kernels.ordered_logits import LAST_ID, NO_KEY, load_keys


@triton.jit
def largest_of_split(logits, adjusted, use_adjusted, maxima, first_tile, last_tile, VOCAB: tl.constexpr,
                      TILE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """(key, id) of the first of the largest logits; fills in the largest key of every BLOCK tokens."""
    top, first = tl.full((), NO_KEY, tl.int32), tl.full((), LAST_ID, tl.int32)
    for tile in range(first_tile, last_tile):
        ids = tile * TILE + tl.arange(0, TILE)
        keys = load_keys(logits, adjusted, use_adjusted, ids, VOCAB)
        blocks = tl.max(tl.reshape(keys, [TILE // BLOCK, BLOCK]), 1)
        tl.store(maxima + tile * (TILE // BLOCK) + tl.arange(0, TILE // BLOCK), blocks)
        largest = tl.max(blocks, 0)
        if largest > top:
            top = largest
            first = tl.min(tl.where(keys == largest, ids, LAST_ID), 0)
    return top, first


@triton.jit
def _draw_of_split(logits, adjusted, use_adjusted, inv_t, seed, position, first_tile, last_tile, VOCAB: tl.constexpr,
                   TILE: tl.constexpr):  # fmt: skip
    """(score, id) of the winner among all tokens of the split."""
    best, winner = tl.full((), float("-inf"), tl.float64), tl.full((), LAST_ID, tl.int32)
    for tile in range(first_tile, last_tile):
        ids = tile * TILE + tl.arange(0, TILE)
        keys = load_keys(logits, adjusted, use_adjusted, ids, VOCAB)
        words = words_of_tile(seed, position, tile * TILE, TILE)
        best, winner = best_of_tile(keys, ids, words, inv_t, best, winner)
    return best, winner


@triton.jit(do_not_specialize=["tiles_per_split"])
def survey_rows(
    logits, stride, adjusted, admissions, slots, alive, positions, maxima, tops, firsts, scores, winners, num_found,
    tiles_per_split, VOCAB: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """Grid: (rows, splits). Rows that are dead are passed over.

    maxima         int32 [rows, MAX_SPLITS * TILE / BLOCK]: the largest key of each block, of filtered rows
    tops, firsts   int32 [rows, MAX_SPLITS]: largest key and the first token that has it; of filtered and greedy rows
    scores         float64 [rows, MAX_SPLITS], winners int32: the draw of the other rows
    num_found      int32 [rows]: set to 0 for `gather_candidates`
    """
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row)
    if is_live(slot, alive):
        position = tl.load(positions + row)
        use_adjusted = is_adjusted(admissions, slot, position)
        temperature = float_of(admissions, slot, TEMPERATURE)
        first_tile = split * tiles_per_split
        last_tile = tl.minimum(first_tile + tiles_per_split, (VOCAB + TILE - 1) // TILE)
        logits += row * stride
        adjusted += row * VOCAB
        partial = row * MAX_SPLITS + split
        if (temperature > 0.0) & (is_filtered(admissions, slot) == 0):
            inv_t = 1.0 / temperature.to(tl.float64)
            best, winner = _draw_of_split(
                logits, adjusted, use_adjusted, inv_t, seed_of(admissions, slot), position, first_tile, last_tile,
                VOCAB, TILE,
            )  # fmt: skip
            tl.store(scores + partial, best)
            tl.store(winners + partial, winner)
        else:
            tl.store(num_found + row, 0, mask=split == 0)
            maxima += row * (MAX_SPLITS * (TILE // BLOCK))
            top, first = largest_of_split(
                logits, adjusted, use_adjusted, maxima, first_tile, last_tile, VOCAB, TILE, BLOCK
            )
            tl.store(tops + partial, top)
            tl.store(firsts + partial, first)
