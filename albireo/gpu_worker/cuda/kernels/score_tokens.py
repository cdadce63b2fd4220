"""Log-probabilities of given tokens and of the most likely ones, under the model's own distribution (`params`).

Three kernels over the batch's rows, like those that sample: the largest logit; the mass, the tokens above the target
and a list that holds the most likely ones; the records.
"""

import triton
import triton.language as tl

from albireo.gpu_worker.cuda.kernels.choose_tokens import load_entries
from albireo.gpu_worker.cuda.kernels.gather_candidates import floor_of_first, gather_split, largest_of_row
from albireo.gpu_worker.cuda.kernels.ordered_logits import (
    KEY_INF,
    KEY_NEG_INF,
    LAST_ID,
    NO_KEY,
    load_keys,
    value_of,
)
from albireo.gpu_worker.cuda.kernels.survey_rows import largest_of_split
from albireo.limits import MAX_LOGPROBS
from albireo.shm.layout import LOGPROB

RECORD_WORDS = tl.constexpr(LOGPROB.itemsize // 4)
POSITION, TOKEN, VALUE, RANK, NUM_TOP, TOP_IDS, TOP_VALUES = (
    tl.constexpr(LOGPROB.fields[name][1] // 4)  # type: ignore[index]
    for name in ("position", "token", "logprob", "rank", "num_top", "top_ids", "top_logprobs")
)
MAX_TOP = tl.constexpr(MAX_LOGPROBS)


@triton.jit
def _target_key(logits, target, VOCAB: tl.constexpr):
    """A target outside the vocabulary counts as impossible."""
    inside = (target >= 0) & (target < VOCAB)
    return tl.where(inside, load_keys(logits, logits, False, tl.where(inside, target, 0), VOCAB), KEY_NEG_INF)


@triton.jit(do_not_specialize=["targets", "tiles_per_split"])
def survey_scored(
    logits, stride, targets, maxima, tops, firsts, num_found, tiles_per_split, VOCAB: tl.constexpr, TILE: tl.constexpr,
    BLOCK: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """Grid: (rows, splits). The outputs are those of `survey_rows`; rows whose target is below 0 are passed over."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if tl.load(targets + row) >= 0:
        first_tile = split * tiles_per_split
        last_tile = tl.minimum(first_tile + tiles_per_split, (VOCAB + TILE - 1) // TILE)
        logits += row * stride
        maxima += row * (MAX_SPLITS * (TILE // BLOCK))
        top, first = largest_of_split(
            logits, logits, False, maxima, first_tile, last_tile, VOCAB, TILE, BLOCK
        )  # fmt: skip
        tl.store(tops + row * MAX_SPLITS + split, top)
        tl.store(firsts + row * MAX_SPLITS + split, first)
        tl.store(num_found + row, 0, mask=split == 0)


@triton.jit(do_not_specialize=["targets", "num_top", "tiles_per_split", "num_splits"])
def gather_scored(
    logits, stride, targets, num_top, maxima, tops, num_found, found_keys, found_ids, masses, num_larger,
    tiles_per_split, num_splits, VOCAB: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    MAX_SPLITS: tl.constexpr, SPLITS: tl.constexpr, BLOCKS: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Grid: (rows, splits). Fills in the list of the most likely tokens, `masses` int64 [rows, MAX_SPLITS] and
    `num_larger` int32 [rows, MAX_SPLITS]: how many logits are larger than the target's."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    target = tl.load(targets + row)
    if target >= 0:
        first_tile = split * tiles_per_split
        last_tile = tl.minimum(first_tile + tiles_per_split, (VOCAB + TILE - 1) // TILE)
        logits += row * stride
        top_key = largest_of_row(tops + row * MAX_SPLITS, num_splits, SPLITS)
        count = tl.load(num_top + row)
        floor = tl.full((), KEY_INF + 1, tl.int32)
        if count > 0:
            blocks = maxima + row * (MAX_SPLITS * (TILE // BLOCK))
            floor = floor_of_first(blocks, count, (VOCAB + BLOCK - 1) // BLOCK, BLOCKS)
        mass = gather_split(
            logits, logits, False, floor, KEY_NEG_INF, top_key, 1.0, top_key > KEY_NEG_INF, num_found + row,
            found_keys + row * CAPACITY, found_ids + row * CAPACITY, first_tile, last_tile, VOCAB, TILE, CAPACITY,
        )  # fmt: skip
        target_key = _target_key(logits, target, VOCAB)
        larger = tl.full((), 0, tl.int32)
        for tile in range(first_tile, last_tile):
            keys = load_keys(logits, logits, False, tile * TILE + tl.arange(0, TILE), VOCAB)
            larger += tl.sum((keys > target_key).to(tl.int32), 0)
        tl.store(masses + row * MAX_SPLITS + split, mass)
        tl.store(num_larger + row * MAX_SPLITS + split, larger)


@triton.jit
def _logprob(key, top_key, log_mass):
    """float32. -inf stays -inf, whatever the largest logit is; +inf is then the largest and counts as a gap of 0."""
    gap = value_of(key).to(tl.float64) - value_of(tl.minimum(top_key, KEY_INF - 1)).to(tl.float64)
    gap = tl.where(key == top_key, 0.0, gap)
    impossible = (key == KEY_NEG_INF) | ((top_key == KEY_INF) & (key < KEY_INF))
    return tl.where(impossible, float("-inf"), (gap - log_mass).to(tl.float32))


@triton.jit
def _next_entry(found_keys, found_ids, num_found, logits, use_row, last_key, last_id, VOCAB: tl.constexpr,
                TILE: tl.constexpr):  # fmt: skip
    """(key, id) of the first token behind (last_key, last_id) in the order."""
    best, winner = tl.full((), NO_KEY, tl.int32), tl.full((), LAST_ID, tl.int32)
    for start in range(0, tl.where(use_row, VOCAB, num_found), TILE):
        keys, ids = load_entries(
            found_keys, found_ids, num_found, logits, logits, False, use_row, start, VOCAB, TILE
        )  # fmt: skip
        behind = (keys < last_key) | ((keys == last_key) & (ids > last_id))
        keys = tl.where(behind, keys, NO_KEY)
        largest = tl.max(keys, 0)
        first = tl.min(tl.where(keys == largest, ids, LAST_ID), 0)
        better = (largest > best) | ((largest == best) & (first < winner))
        best, winner = tl.where(better, largest, best), tl.where(better, first, winner)
    return best, winner


@triton.jit(do_not_specialize=["targets", "positions", "num_top", "num_splits"])
def write_scores(
    logits, stride, targets, positions, num_top, tops, num_found, found_keys, found_ids, masses, num_larger, out,
    num_splits, VOCAB: tl.constexpr, TILE: tl.constexpr, MAX_SPLITS: tl.constexpr, SPLITS: tl.constexpr,
    CAPACITY: tl.constexpr,
):  # fmt: skip
    """Grid: (rows,). `out`: int32 [rows, 48], `layout.LOGPROB`; slot and generation are left alone, and of rows
    whose target is below 0 everything but the token."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    record = out + row * RECORD_WORDS
    tl.store(record + TOKEN, target)
    if target >= 0:
        tl.store(record + POSITION, tl.load(positions + row))
        logits += row * stride
        split = tl.arange(0, SPLITS)
        inside, partial = split < num_splits, row * MAX_SPLITS + split
        top_key = largest_of_row(tops + row * MAX_SPLITS, num_splits, SPLITS)
        mass = tl.sum(tl.load(masses + partial, mask=inside, other=0), 0)
        # no mass: all are impossible
        log_mass = tl.log(tl.maximum(mass, 1).to(tl.float64) / 17592186044416.0)  # 2^44
        larger = tl.sum(tl.load(num_larger + partial, mask=inside, other=0), 0)
        value = _logprob(_target_key(logits, target, VOCAB), top_key, log_mass)
        tl.store(record + VALUE, value.to(tl.int32, bitcast=True))
        tl.store(record + RANK, larger + 1)
        count = tl.minimum(tl.maximum(tl.load(num_top + row), 0), MAX_TOP if MAX_TOP < VOCAB else VOCAB)
        tl.store(record + NUM_TOP, count)
        found, last_id = tl.load(num_found + row), tl.full((), -1, tl.int32)
        use_row, last_key = found > CAPACITY, tl.full((), KEY_INF, tl.int32)
        for i in range(MAX_TOP):
            likely = tl.full((), 0.0, tl.float32)
            token = tl.full((), -1, tl.int32)
            if i < count:
                last_key, last_id = _next_entry(
                    found_keys + row * CAPACITY, found_ids + row * CAPACITY, found, logits, use_row, last_key, last_id,
                    VOCAB, TILE,
                )  # fmt: skip
                likely, token = _logprob(last_key, top_key, log_mass), last_id
            tl.store(record + TOP_IDS + i, token)
            tl.store(record + TOP_VALUES + i, likely.to(tl.int32, bitcast=True))
