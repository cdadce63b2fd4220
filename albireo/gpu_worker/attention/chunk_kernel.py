"""Prompt chunks against the pages: bound by arithmetic, so it is arranged as products of small matrices.

An item of work is one key/value head of one sequence for as many query tokens as fill the 64 columns of a tile with
their query heads. Positions are walked in tiles of `TILE` from the first that any of the queries sees: scores
[positions, queries] = keys . queries, the online softmax down the columns (FlashAttention, Dao et al. 2022), then
sums [head_dim, queries] = values' . weights. Keeping queries in the columns makes every step a whole vector without
a sum across lanes; keys and values are only ever broadcast, so pages need no transposing.

Tiles lie at fixed positions and columns never mix: a query gives the same bits in whatever chunk it comes.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numba import carray, njit

from albireo.gpu_worker.kernels.launch import CALLED, INLINED
from albireo.gpu_worker.kernels.simd import (
    add,
    divide,
    exp2,
    fetch_add,
    keep_between,
    load,
    maximum,
    multiply,
    offset,
    pointer,
    splat,
    store,
    subtract,
)
from albireo.gpu_worker.kernels.tile import COLUMNS, ROWS, multiply_tile

TILE: Final = 32
LOWEST: Final = np.float32(-1e30)
ZERO: Final = np.float32(0)
ONE: Final = np.float32(1)

CHUNK_ARGUMENTS = np.dtype(
    [
        ("counters", "<i8"),
        ("scratch", "<i8"),
        ("scratch_floats", "<i8"),
        ("query", "<i8"),
        ("query_stride", "<i8"),
        ("out", "<i8"),
        ("out_stride", "<i8"),
        ("k_cache", "<i8"),
        ("v_cache", "<i8"),
        ("block_size", "<i8"),
        ("num_kv_heads", "<i8"),
        ("head_dim", "<i8"),
        ("group", "<i8"),
        ("block_table", "<i8"),
        ("table_stride", "<i8"),
        ("slots", "<i8"),
        ("seq_lens", "<i8"),
        ("query_start", "<i8"),
        ("first_seq", "<i8"),
        ("num_seqs", "<i8"),
        ("window", "<i8"),
        ("scale", "<f4"),
        ("unused", "<f4"),
    ]
)


class Work(NamedTuple):
    """A thread's scratch, pointers to fp32. Rows of COLUMNS hold a number for each query of the item."""

    query: Any
    """[head_dim, COLUMNS], scaled"""
    sums: Any
    """[head_dim, COLUMNS]"""
    scores: Any
    """[TILE, COLUMNS]"""
    rows: Any
    """[TILE, head_dim]: the tile's keys, then its values"""
    positions: Any
    largest: Any
    totals: Any
    decay: Any
    """[COLUMNS]: what earlier sums are to be multiplied with"""
    zeros: Any
    columns: Any
    """Columns in use, rounded up to a multiple of 16; not a pointer."""


class View(NamedTuple):
    """What an item reads: positions [begin, end) of one head of one sequence."""

    table: Any
    block_size: Any
    num_kv_heads: Any
    head: Any
    head_dim: Any
    begin: Any
    end: Any


def scratch_floats(head_dim: int) -> int:
    """fp32 numbers that a thread needs."""
    return 2 * head_dim * COLUMNS + TILE * (COLUMNS + head_dim) + 5 * COLUMNS


@njit(**INLINED)
def _divide_scratch(mine: Any, head_dim: Any, columns: Any) -> Any:
    scores = offset(mine, 2 * head_dim * COLUMNS)
    rows = offset(scores, TILE * COLUMNS)
    queries = offset(rows, TILE * head_dim)
    return Work(
        mine,
        offset(mine, head_dim * COLUMNS),
        scores,
        rows,
        queries,
        offset(queries, COLUMNS),
        offset(queries, 2 * COLUMNS),
        offset(queries, 3 * COLUMNS),
        offset(queries, 4 * COLUMNS),
        columns,
    )


@njit(**CALLED)
def _read_rows(rows: Any, cache: Any, view: Any, start: Any, count: Any) -> None:
    """rows[t] = position start + t as fp32; zeros for positions that no query sees, whose pages may hold anything."""
    head_dim = view.head_dim
    for t in range(count):
        position = start + t
        if view.begin <= position < view.end:
            page = np.int64(view.table[position // view.block_size]) * view.num_kv_heads + view.head
            at = (page * view.block_size + position % view.block_size) * head_dim
            for d in range(0, head_dim, 16):
                store(rows, t * head_dim + d, load(cache, at + d))
        else:
            for d in range(0, head_dim, 16):
                store(rows, t * head_dim + d, splat(ZERO))


@njit(**CALLED)
def _mask(work: Any, start: Any, count: Any, window: Any) -> None:
    """LOWEST for the scores of positions start + t that a column's query does not see."""
    reach = splat(np.float32(window - 1))
    for j in range(0, work.columns, 16):
        position = load(work.positions, j)
        lowest = subtract(position, reach)
        for t in range(count):
            at = t * COLUMNS + j
            key = splat(np.float32(start + t))
            store(work.scores, at, keep_between(load(work.scores, at), lowest, key, position, splat(LOWEST)))


@njit(**CALLED)
def _softmax(work: Any, count: Any) -> None:
    """Scores to weights down the columns, relative to the largest score so far."""
    for j in range(0, work.columns, 16):
        before = load(work.largest, j)
        largest = before
        for t in range(count):
            largest = maximum(load(work.scores, t * COLUMNS + j), largest)
        decay = exp2(subtract(before, largest))
        total = multiply(load(work.totals, j), decay)
        for t in range(count):
            weight = exp2(subtract(load(work.scores, t * COLUMNS + j), largest))
            store(work.scores, t * COLUMNS + j, weight)
            total = add(total, weight)
        store(work.largest, j, largest)
        store(work.totals, j, total)
        store(work.decay, j, decay)


@njit(**CALLED)
def _start_item(
    work: Any, query: Any, a: Any, token: Any, tokens: Any, head: Any, position: Any, head_dim: Any
) -> None:
    """The item's queries into columns, token by token; its running numbers to their beginnings."""
    for t in range(tokens):
        for g in range(a.group):
            at = (token + t) * a.query_stride + (head * a.group + g) * head_dim
            for d in range(0, head_dim, 16):
                store(work.rows, d, multiply(splat(a.scale), load(query, at + d)))
            column = t * a.group + g
            for d in range(head_dim):
                work.query[d * COLUMNS + column] = work.rows[d]
            work.positions[column] = np.float32(position + t)
    for column in range(tokens * a.group, COLUMNS):
        for d in range(head_dim):
            work.query[d * COLUMNS + column] = ZERO
        work.positions[column] = np.float32(position)
    for j in range(0, COLUMNS, 16):
        store(work.largest, j, splat(LOWEST))
        store(work.totals, j, splat(ZERO))
        store(work.zeros, j, splat(ZERO))
        for d in range(head_dim):
            store(work.sums, d * COLUMNS + j, splat(ZERO))


@njit(**CALLED)
def _attend_tile(work: Any, keys: Any, values: Any, view: Any, start: Any, position: Any, window: Any) -> None:
    """Positions [start, start + TILE) for the item's queries, the first of which is at `position`."""
    head_dim, columns = view.head_dim, work.columns
    count = min(TILE, (view.end - start + ROWS - 1) // ROWS * ROWS)
    _read_rows(work.rows, keys, view, start, count)
    for t in range(0, count, ROWS):
        scores, rows = offset(work.scores, t * COLUMNS), offset(work.rows, t * head_dim)
        for j in range(0, ROWS * COLUMNS, 16):
            store(scores, j, splat(ZERO))
        multiply_tile(scores, work.zeros, rows, head_dim, 1, work.query, head_dim, columns)
    if start + TILE - 1 > position or start < view.end - window:
        _mask(work, start, count, window)
    _softmax(work, count)
    _read_rows(work.rows, values, view, start, count)
    for d in range(0, head_dim, ROWS):
        sums = offset(work.sums, d * COLUMNS)
        multiply_tile(sums, work.decay, offset(work.rows, d), 1, head_dim, work.scores, count, columns)


@njit(**CALLED)
def _finish_item(work: Any, out: Any, a: Any, token: Any, tokens: Any, head: Any, head_dim: Any) -> None:
    """Columns back to rows of `out`, divided by their sums of weights."""
    for j in range(0, COLUMNS, 16):
        store(work.decay, j, divide(splat(ONE), load(work.totals, j)))
    for t in range(tokens):
        for g in range(a.group):
            column = t * a.group + g
            for d in range(head_dim):
                work.rows[d] = work.sums[d * COLUMNS + column]
            at = (token + t) * a.out_stride + (head * a.group + g) * head_dim
            factor = splat(work.decay[column])
            for d in range(0, head_dim, 16):
                store(out, at + d, multiply(factor, load(work.rows, d)))


@njit(**INLINED)
def _num_items(query_start: Any, seq: Any, a: Any) -> Any:
    tokens_per_item = COLUMNS // a.group
    num_tokens = np.int64(query_start[seq + 1]) - np.int64(query_start[seq])
    return (num_tokens + tokens_per_item - 1) // tokens_per_item * a.num_kv_heads


@njit(**CALLED)
def _attend_item(scratch: Any, keys: Any, values: Any, query: Any, out: Any, a: Any, seq: Any, rank: Any) -> None:
    """Item `rank` of sequence `seq`: heads vary fastest, then query tokens."""
    head_dim = a.head_dim
    tokens_per_item = COLUMNS // a.group
    query_start = pointer(a.query_start, np.int32)
    head = rank % a.num_kv_heads
    end = np.int64(query_start[seq + 1])
    token = np.int64(query_start[seq]) + rank // a.num_kv_heads * tokens_per_item
    tokens = min(tokens_per_item, end - token)
    seq_len = np.int64(pointer(a.seq_lens, np.int32)[seq])
    if seq_len == 0:
        for t in range(token, token + tokens):
            for j in range(0, a.group * head_dim, 16):
                store(out, t * a.out_stride + head * a.group * head_dim + j, splat(ZERO))
        return
    slot = np.int64(pointer(a.slots, np.int32)[seq])
    table = pointer(a.block_table + 4 * slot * a.table_stride, np.int32)
    position = seq_len - (end - token)
    begin = max(0, position - a.window + 1)
    view = View(table, a.block_size, a.num_kv_heads, head, head_dim, begin, position + tokens)
    work = _divide_scratch(scratch, head_dim, (tokens * a.group + 15) // 16 * 16)
    _start_item(work, query, a, token, tokens, head, position, head_dim)
    for start in range(begin // TILE * TILE, view.end, TILE):
        _attend_tile(work, keys, values, view, start, position, a.window)
    _finish_item(work, out, a, token, tokens, head, head_dim)


def chunk_kernel(element: type[np.generic]) -> Any:
    """The kernel for pages of `element`: np.uint16 for bf16, or np.float32."""

    def attend_chunks(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        scratch = pointer(a.scratch + 4 * a.scratch_floats * fetch_add(a.counters, 1), np.float32)
        keys, values = pointer(a.k_cache, element), pointer(a.v_cache, element)
        query, out = pointer(a.query, element), pointer(a.out, element)
        query_start = pointer(a.query_start, np.int32)
        seq, first_item = a.first_seq, 0
        while True:
            item = fetch_add(a.counters + 8, 1)
            while seq < a.num_seqs and item >= first_item + _num_items(query_start, seq, a):
                first_item += _num_items(query_start, seq, a)
                seq += 1
            if seq == a.num_seqs:
                return
            # a sequence's last queries see most: they go first, so that the threads finish together
            rank = first_item + _num_items(query_start, seq, a) - 1 - item
            _attend_item(scratch, keys, values, query, out, a, seq, rank)

    return attend_chunks
