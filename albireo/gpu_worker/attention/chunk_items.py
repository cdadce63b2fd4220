"""Prompt chunks against the pages: bound by arithmetic, so they are arranged as products of small matrices.

An item of work is one key/value head of one sequence for as many query tokens as fill the 64 columns of a tile with
their query heads. Positions are walked in tiles of `TILE` from the first that any of the queries sees: scores
[positions, queries] = keys . queries, the online softmax down the columns (FlashAttention, Dao et al. 2022), then
sums [head_dim, queries] = values' . weights. Keeping queries in the columns makes every step a whole vector without
a sum across lanes; keys and values are only ever broadcast, so pages need no transposing.

Tiles lie at fixed positions and columns never mix: a query gives the same bits in whatever chunk it comes.

Here stands what is the same for fp32 (`chunk_f32`) and bf16 (`chunk_bf16`).
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit

from albireo.gpu_worker.kernels.launch import CALLED, INLINED
from albireo.gpu_worker.kernels.simd import (
    divide,
    keep_between,
    load,
    offset,
    pointer,
    splat,
    store,
    subtract,
)
from albireo.gpu_worker.kernels.tile import COLUMNS, ROWS

TILE: Final = 32
LOWEST: Final = np.float32(-1e30)
"""Score of a position that a query does not see: finite, so that no infinity meets a subtraction."""
ZERO: Final = np.float32(0)

CHUNK_ARGUMENTS = np.dtype(
    [
        ("counters", "<i8"),  # int64[2], 0: threads entered, items taken
        ("scratch", "<i8"),  # fp32[threads, scratch_floats]
        ("scratch_floats", "<i8"),
        ("query", "<i8"),
        ("query_stride", "<i8"),  # elements from token to token; heads follow one another
        ("out", "<i8"),
        ("out_stride", "<i8"),
        ("k_cache", "<i8"),
        ("v_cache", "<i8"),
        ("block_size", "<i8"),
        ("num_kv_heads", "<i8"),
        ("head_dim", "<i8"),  # a multiple of 16
        ("group", "<i8"),  # query heads per key/value head
        ("block_table", "<i8"),
        ("table_stride", "<i8"),
        ("slots", "<i8"),
        ("seq_lens", "<i8"),
        ("query_start", "<i8"),
        ("first_seq", "<i8"),  # the decode rows before it are not ours
        ("num_seqs", "<i8"),
        ("window", "<i8"),  # positions that a query sees; a huge number for all
        ("scale", "<f4"),  # times log2(e), since the softmax is in powers of two
        ("unused", "<f4"),
    ]
)
"""Addresses and sizes; strides are in elements."""


class Work(NamedTuple):
    """A thread's scratch: pointers to fp32, or to words of two bf16 where chunk_bf16 says so."""

    query: Any
    """[head_dim, COLUMNS]"""
    sums: Any
    """[head_dim, COLUMNS]"""
    scores: Any
    """[TILE, COLUMNS]"""
    weights: Any
    """[TILE, COLUMNS]"""
    rows: Any
    """[TILE, head_dim]: keys or values of a tile"""
    row: Any
    """[head_dim]"""
    positions: Any
    """[COLUMNS]: of the queries"""
    largest: Any
    """[COLUMNS]: each query's largest score so far"""
    totals: Any
    """[COLUMNS]: its sum of weights"""
    decay: Any
    """[COLUMNS]: what its earlier sums are to be multiplied with"""


def scratch_floats(head_dim: int) -> int:
    """fp32 numbers that a thread needs."""
    return 2 * head_dim * COLUMNS + 2 * TILE * COLUMNS + (TILE + 1) * head_dim + 4 * COLUMNS


@njit(**INLINED)
def divide_scratch(mine: Any, head_dim: Any) -> Any:
    """`Work` in a thread's scratch, all of it fp32."""
    sums = offset(mine, head_dim * COLUMNS)
    scores = offset(sums, head_dim * COLUMNS)
    weights = offset(scores, TILE * COLUMNS)
    rows = offset(weights, TILE * COLUMNS)
    row = offset(rows, TILE * head_dim)
    queries = offset(row, head_dim)
    largest, totals = offset(queries, COLUMNS), offset(queries, 2 * COLUMNS)
    return Work(mine, sums, scores, weights, rows, row, queries, largest, totals, offset(queries, 3 * COLUMNS))


class Item(NamedTuple):
    """One head of one sequence, some of its query tokens, and the positions [begin, end) that they see."""

    table: Any
    """The sequence's blocks."""
    head: Any
    token: Any
    """The first query token, as a row of the step."""
    tokens: Any
    position: Any
    """Of the first query token."""
    begin: Any
    end: Any
    columns: Any
    """Columns in use, rounded up to whole vectors."""


@njit(**INLINED)
def num_items(seq: Any, a: Any) -> Any:
    """Items of a sequence: its query tokens in full tiles, times its heads."""
    query_start = pointer(a.query_start, np.int32)
    tokens_per_item = COLUMNS // a.group
    num_tokens = np.int64(query_start[seq + 1]) - np.int64(query_start[seq])
    return (num_tokens + tokens_per_item - 1) // tokens_per_item * a.num_kv_heads


@njit(**CALLED)
def find_sequence(item: Any, seq: Any, first_item: Any, a: Any) -> Any:
    """Walk from a sequence and its first item to the one that `item` belongs to, num_seqs when there is none."""
    while seq < a.num_seqs and item >= first_item + num_items(seq, a):
        first_item += num_items(seq, a)
        seq += 1
    return seq, first_item


@njit(**CALLED)
def find_item(seq: Any, number: Any, a: Any) -> Any:
    """Item `number` of a sequence. The last queries see most: they go first, so that threads finish together."""
    rank = num_items(seq, a) - 1 - number
    query_start = pointer(a.query_start, np.int32)
    tokens_per_item = COLUMNS // a.group
    last = np.int64(query_start[seq + 1])
    token = np.int64(query_start[seq]) + rank // a.num_kv_heads * tokens_per_item
    tokens = min(tokens_per_item, last - token)
    seq_len = np.int64(pointer(a.seq_lens, np.int32)[seq])
    position = seq_len - (last - token)
    begin, end = max(0, position - a.window + 1), position + tokens
    if seq_len == 0:
        begin, end = 0, 0
    slot = np.int64(pointer(a.slots, np.int32)[seq])
    table = pointer(a.block_table + 4 * slot * a.table_stride, np.int32)
    columns = (tokens * a.group + 15) // 16 * 16
    return Item(table, rank % a.num_kv_heads, token, tokens, position, begin, end, columns)


@njit(**INLINED)
def tile_count(item: Any, start: Any) -> Any:
    """Positions of the tile at `start` that are worked on: as far as the item goes, in whole rows of products."""
    return min(TILE, (item.end - start + ROWS - 1) // ROWS * ROWS)


@njit(**CALLED)
def start_columns(work: Any, item: Any, group: Any, head_dim: Any) -> None:
    """Positions of the queries and the beginnings of their running numbers."""
    for column in range(item.columns):
        work.positions[column] = np.float32(item.position + min(column // group, item.tokens - 1))
    for j in range(0, item.columns, 16):
        store(work.largest, j, splat(LOWEST))
        store(work.totals, j, splat(ZERO))
        for d in range(head_dim):
            store(work.sums, d * COLUMNS + j, splat(ZERO))


@njit(**CALLED)
def mask(work: Any, item: Any, start: Any, window: Any) -> None:
    """LOWEST for the scores of positions start + t that a column's query does not see."""
    if start + TILE - 1 <= item.position and start >= item.end - window:
        return
    reach = splat(np.float32(window - 1))
    for j in range(0, item.columns, 16):
        position = load(work.positions, j)
        lowest = subtract(position, reach)
        for t in range(tile_count(item, start)):
            at = t * COLUMNS + j
            key = splat(np.float32(start + t))
            store(work.scores, at, keep_between(load(work.scores, at), lowest, key, position, splat(LOWEST)))


@njit(**CALLED)
def write_out(work: Any, out: Any, item: Any, a: Any) -> None:
    """Columns back to rows of `out`, divided by their sums of weights; zeros for a dead row."""
    for t in range(item.tokens):
        for g in range(a.group):
            column = t * a.group + g
            at = (item.token + t) * a.out_stride + (item.head * a.group + g) * a.head_dim
            total = work.totals[column]
            for d in range(a.head_dim):
                work.row[d] = work.sums[d * COLUMNS + column]
            for d in range(0, a.head_dim, 16):
                if item.end == 0:
                    store(out, at + d, splat(ZERO))
                else:
                    store(out, at + d, divide(load(work.row, d), splat(total)))
