"""Attention of prompt chunks over bf16 pages by dot products of bf16 pairs; `chunk_items` says how it goes.

Keys are read from their pages as they lie, pairs along head_dim. Values and weights are paired along positions, the
weights rounded to bf16 and summed as rounded, so that they still add up to one. All sums are fp32.
"""

from typing import Any

import numpy as np
from numba import carray, njit

from albireo.gpu_worker.attention.chunk_items import (
    TILE,
    ZERO,
    Work,
    divide_scratch,
    find_item,
    find_sequence,
    mask,
    start_columns,
    tile_count,
    write_out,
)
from albireo.gpu_worker.kernels.bf16_pairs import round_to_bf16, store_pairs, words
from albireo.gpu_worker.kernels.launch import CALLED, INLINED
from albireo.gpu_worker.kernels.simd import (
    add,
    exp2,
    fetch_add,
    fma,
    load,
    maximum,
    multiply,
    offset,
    pointer,
    splat,
    store,
    subtract,
)
from albireo.gpu_worker.kernels.tile import COLUMNS, ROWS, accumulate_pairs_tile, multiply_pairs_tile


@njit(**CALLED)
def _load_queries(work: Any, query_words: Any, item: Any, a: Any) -> None:
    """The item's queries, as pairs along head_dim, into columns; zeros into what is left of the last vector."""
    num_words = a.head_dim // 2
    for t in range(item.tokens):
        for g in range(a.group):
            at = ((item.token + t) * a.query_stride + (item.head * a.group + g) * a.head_dim) // 2
            for d in range(num_words):
                work.query[d * COLUMNS + t * a.group + g] = query_words[at + d]
    for column in range(item.tokens * a.group, item.columns):
        for d in range(num_words):
            work.query[d * COLUMNS + column] = np.uint32(0)


@njit(**INLINED)
def _row_at(position: Any, item: Any, a: Any) -> Any:
    """Index of a position's row in a cache, in rows of head_dim."""
    page = np.int64(item.table[position // a.block_size]) * a.num_kv_heads + item.head
    return page * a.block_size + position % a.block_size


@njit(**CALLED)
def _score(work: Any, key_words: Any, item: Any, start: Any, a: Any) -> None:
    """Scores of a tile. Rows that no query sees are masked later; those before `begin` may have no page any more."""
    num_words = a.head_dim // 2
    for t in range(0, tile_count(item, start), ROWS):
        position = max(start + t, item.begin // ROWS * ROWS)
        keys = offset(key_words, _row_at(position, item, a) * num_words)
        scores = offset(work.scores, t * COLUMNS)
        multiply_pairs_tile(scores, keys, num_words, 1, work.query, num_words, item.columns)


@njit(**CALLED)
def _softmax(work: Any, count: Any, columns: Any, scale: Any) -> None:
    """Scores to weights down the columns, relative to the largest score so far, in pairs of positions."""
    factor = splat(scale)
    for j in range(0, columns, 16):
        before = load(work.largest, j)
        top = load(work.scores, j)
        for t in range(1, count):
            top = maximum(load(work.scores, t * COLUMNS + j), top)
        largest = maximum(multiply(top, factor), before)
        decay = exp2(subtract(before, largest))
        total = multiply(load(work.totals, j), decay)
        negative = subtract(splat(ZERO), largest)
        for t in range(0, count, 2):
            low = round_to_bf16(exp2(fma(load(work.scores, t * COLUMNS + j), factor, negative)))
            high = round_to_bf16(exp2(fma(load(work.scores, (t + 1) * COLUMNS + j), factor, negative)))
            store_pairs(work.weights, t // 2 * COLUMNS + j, low, high)
            total = add(total, add(low, high))
        store(work.largest, j, largest)
        store(work.totals, j, total)
        store(work.decay, j, decay)


@njit(**CALLED)
def _pair_values(work: Any, cache: Any, item: Any, start: Any, a: Any) -> None:
    """Rows of values two by two; zeros for positions that no query sees, whose pages may hold anything."""
    head_dim = a.head_dim
    for t in range(0, tile_count(item, start), 2):
        position = start + t
        low_seen = item.begin <= position < item.end
        high_seen = item.begin <= position + 1 < item.end
        low = _row_at(position, item, a) * head_dim if low_seen else 0
        high = _row_at(position + 1, item, a) * head_dim if high_seen else 0
        for d in range(0, head_dim, 16):
            low_row = load(cache, low + d) if low_seen else splat(ZERO)
            high_row = load(cache, high + d) if high_seen else splat(ZERO)
            store_pairs(work.rows, t // 2 * head_dim + d, low_row, high_row)


@njit(**CALLED)
def _attend_tile(work: Any, key_words: Any, values: Any, item: Any, start: Any, a: Any) -> None:
    """Positions [start, start + TILE) for the item's queries."""
    count = tile_count(item, start)
    _score(work, key_words, item, start, a)
    mask(work, item, start, a.window)
    _softmax(work, count, item.columns, a.scale)
    _pair_values(work, values, item, start, a)
    for d in range(0, a.head_dim, ROWS):
        sums = offset(work.sums, d * COLUMNS)
        rows = offset(work.rows, d)
        accumulate_pairs_tile(sums, work.decay, rows, 1, a.head_dim, work.weights, count // 2, item.columns)


def attend_chunks(arguments: Any) -> None:
    """The kernel, for pages, queries and outputs of bf16."""
    a = carray(arguments, 1)[0]
    mine = a.scratch + 4 * a.scratch_floats * fetch_add(a.counters, 1)
    floats = divide_scratch(pointer(mine, np.float32), a.head_dim)
    work = Work(
        words(floats.query),
        floats.sums,
        floats.scores,
        words(floats.weights),
        words(floats.rows),
        floats.row,
        floats.positions,
        floats.largest,
        floats.totals,
        floats.decay,
    )
    key_words, query_words = pointer(a.k_cache, np.uint32), pointer(a.query, np.uint32)
    values, out = pointer(a.v_cache, np.uint16), pointer(a.out, np.uint16)
    seq, first_item = a.first_seq, 0
    while True:
        number = fetch_add(a.counters + 8, 1)
        seq, first_item = find_sequence(number, seq, first_item, a)
        if seq == a.num_seqs:
            return
        item = find_item(seq, number - first_item, a)
        start_columns(work, item, a.group, a.head_dim)
        _load_queries(work, query_words, item, a)
        for start in range(item.begin // TILE * TILE, item.end, TILE):
            _attend_tile(work, key_words, values, item, start, a)
        write_out(work, out, item, a)
