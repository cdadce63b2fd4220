"""Attention of prompt chunks over fp32 pages; `chunk_items` says how it goes."""

from typing import Any

import numpy as np
from numba import carray, njit

from albireo.gpu_worker.attention.chunk_items import (
    TILE,
    ZERO,
    divide_scratch,
    find_item,
    find_sequence,
    mask,
    start_columns,
    tile_count,
    write_out,
)
from albireo.gpu_worker.kernels.launch import CALLED
from albireo.gpu_worker.kernels.simd import (
    add,
    exp2,
    fetch_add,
    load,
    maximum,
    multiply,
    offset,
    pointer,
    splat,
    store,
    subtract,
)
from albireo.gpu_worker.kernels.tile import COLUMNS, ROWS, accumulate_tile, multiply_tile


@njit(**CALLED)
def _load_queries(work: Any, query: Any, item: Any, a: Any) -> None:
    """The item's queries, scaled, into columns; zeros into what is left of the last vector."""
    for t in range(item.tokens):
        for g in range(a.group):
            at = (item.token + t) * a.query_stride + (item.head * a.group + g) * a.head_dim
            for d in range(0, a.head_dim, 16):
                store(work.row, d, multiply(splat(a.scale), load(query, at + d)))
            for d in range(a.head_dim):
                work.query[d * COLUMNS + t * a.group + g] = work.row[d]
    for column in range(item.tokens * a.group, item.columns):
        for d in range(a.head_dim):
            work.query[d * COLUMNS + column] = ZERO


@njit(**CALLED)
def _read_rows(rows: Any, cache: Any, item: Any, start: Any, a: Any) -> None:
    """rows[t] = position start + t; zeros for positions that no query sees, whose pages may hold anything."""
    head_dim = a.head_dim
    for t in range(tile_count(item, start)):
        position = start + t
        if item.begin <= position < item.end:
            page = np.int64(item.table[position // a.block_size]) * a.num_kv_heads + item.head
            at = (page * a.block_size + position % a.block_size) * head_dim
            for d in range(0, head_dim, 16):
                store(rows, t * head_dim + d, load(cache, at + d))
        else:
            for d in range(0, head_dim, 16):
                store(rows, t * head_dim + d, splat(ZERO))


@njit(**CALLED)
def _softmax(work: Any, count: Any, columns: Any) -> None:
    """Scores to weights down the columns, relative to the largest score so far."""
    for j in range(0, columns, 16):
        before = load(work.largest, j)
        largest = before
        for t in range(count):
            largest = maximum(load(work.scores, t * COLUMNS + j), largest)
        decay = exp2(subtract(before, largest))
        total = multiply(load(work.totals, j), decay)
        for t in range(count):
            weight = exp2(subtract(load(work.scores, t * COLUMNS + j), largest))
            store(work.weights, t * COLUMNS + j, weight)
            total = add(total, weight)
        store(work.largest, j, largest)
        store(work.totals, j, total)
        store(work.decay, j, decay)


@njit(**CALLED)
def _attend_tile(work: Any, keys: Any, values: Any, item: Any, start: Any, a: Any) -> None:
    """Positions [start, start + TILE) for the item's queries."""
    head_dim, columns, count = a.head_dim, item.columns, tile_count(item, start)
    _read_rows(work.rows, keys, item, start, a)
    for t in range(0, count, ROWS):
        scores = offset(work.scores, t * COLUMNS)
        multiply_tile(scores, offset(work.rows, t * head_dim), head_dim, 1, work.query, head_dim, columns)
    mask(work, item, start, a.window)
    _softmax(work, count, columns)
    _read_rows(work.rows, values, item, start, a)
    for d in range(0, head_dim, ROWS):
        sums = offset(work.sums, d * COLUMNS)
        accumulate_tile(sums, work.decay, offset(work.rows, d), 1, head_dim, work.weights, count, columns)


def attend_chunks(arguments: Any) -> None:
    """The kernel, for pages, queries and outputs of fp32."""
    a = carray(arguments, 1)[0]
    mine = pointer(a.scratch + 4 * a.scratch_floats * fetch_add(a.counters, 1), np.float32)
    work = divide_scratch(mine, a.head_dim)
    keys, values = pointer(a.k_cache, np.float32), pointer(a.v_cache, np.float32)
    query, out = pointer(a.query, np.float32), pointer(a.out, np.float32)
    seq, first_item = a.first_seq, 0
    while True:
        number = fetch_add(a.counters + 8, 1)
        seq, first_item = find_sequence(number, seq, first_item, a)
        if seq == a.num_seqs:
            return
        item = find_item(seq, number - first_item, a)
        start_columns(work, item, a.group, a.head_dim)
        _load_queries(work, query, item, a)
        for start in range(item.begin // TILE * TILE, item.end, TILE):
            _attend_tile(work, keys, values, item, start, a)
        write_out(work, out, item, a)
