"""One query token per sequence against its pages: bound by memory, so every page is read once and in good time.

An item of work is a run of key/value heads of one sequence over one split of `SPLIT` positions. Per head all query
heads of the group go together; first all scores of the split, then the softmax over them, then the weighted sum of
the values, each pass asking for later pages while it works on this one. Sequences longer than a split leave partial
results, which the last thread to finish merges in the order of the splits (flash decoding, Dao et al. 2023).

Splits lie at fixed positions, and a row's sums run in an order that depends on nothing but its own length: the same
row gives the same bits alone, in any batch, and on any number of threads.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numba import carray, njit

from albireo.gpu_worker.attention.decode_page import SPLIT, ZERO, Pages, page, page_scores, page_values
from albireo.gpu_worker.kernels.launch import CALLED, INLINED
from albireo.gpu_worker.kernels.simd import (
    add,
    exp2,
    fetch_add,
    first_lane,
    fma,
    load,
    max_lanes,
    maximum,
    multiply,
    offset,
    pointer,
    splat,
    store,
    subtract,
    sum_lanes,
)

LOWEST: Final = np.float32(-1e30)
"""Score of a position that the query does not see: finite, so that no infinity meets a subtraction."""

DECODE_ARGUMENTS = np.dtype(
    [
        ("counters", "<i8"),  # int64[2 + ...] all 0: threads entered, items taken, then splits done per sequence, run
        ("scratch", "<i8"),  # fp32[threads, scratch_floats]
        ("scratch_floats", "<i8"),
        ("partials", "<i8"),  # fp32[splits of all sequences, num_kv_heads, group, head_dim + 16]
        ("query", "<i8"),
        ("query_stride", "<i8"),  # elements from token to token; heads follow one another
        ("out", "<i8"),
        ("out_stride", "<i8"),
        ("k_cache", "<i8"),
        ("v_cache", "<i8"),
        ("block_size", "<i8"),
        ("num_kv_heads", "<i8"),
        ("head_dim", "<i8"),  # a multiple of 16
        ("heads_per_item", "<i8"),  # divides num_kv_heads
        ("group", "<i8"),  # query heads per key/value head
        ("block_table", "<i8"),
        ("table_stride", "<i8"),
        ("slots", "<i8"),
        ("seq_lens", "<i8"),
        ("num_seqs", "<i8"),
        ("window", "<i8"),  # positions that a query sees; a huge number for all
        ("scale", "<f4"),  # times log2(e), since the softmax is in powers of two
        ("unused", "<f4"),
    ]
)
"""Addresses and sizes; strides are in elements."""
PARTIAL_TAIL: Final = 16
"""Behind a partial result's head_dim sums: its largest score, its sum of weights, and padding."""
AHEAD_BYTES: Final = 8192
"""Pages are asked for this many bytes before they are read. Less waits for memory (one page of 2 KB: 1.6 to 1.9 times
the time of a decode step's attention), more gains nothing (docs/benchmarks/cpu-attention.md)."""


class Work(NamedTuple):
    """A thread's scratch, pointers to fp32; rows of query heads, of which there are an even number."""

    scores: Any
    """[group, SPLIT]"""
    acc: Any
    """[group, head_dim]: sums of values"""
    query: Any
    """[group, head_dim], scaled"""
    sums: Any
    """[2, group]: the largest score and the sum of the weights"""


def scratch_floats(group: int, head_dim: int) -> int:
    """fp32 numbers that a thread needs: scores, sums and the scaled query of one key/value head."""
    padded = group + group % 2
    return padded * (SPLIT + 2 * head_dim) + 2 * padded


@njit(**INLINED)
def _softmax(scores: Any, first: Any, count: Any, sums: Any, g: Any, group: Any) -> None:
    """Turn scores[g, first:count] into weights relative to the largest; it and their sum go to `sums`."""
    row = g * SPLIT
    for t in range(0, first):
        scores[row + t] = LOWEST
    for t in range(count, (count + 15) // 16 * 16):
        scores[row + t] = LOWEST
    largest = splat(LOWEST)
    for t in range(0, count, 16):
        largest = maximum(load(scores, row + t), largest)
    top = max_lanes(largest)
    largest = splat(top)
    total = splat(ZERO)
    for t in range(0, count, 16):
        weight = exp2(subtract(load(scores, row + t), largest))
        total = add(total, weight)
        store(scores, row + t, weight)
    sums[g] = top
    sums[group + g] = sum_lanes(total)


@njit(**INLINED)
def _write_head(out: Any, at: Any, acc: Any, row: Any, total: Any, head_dim: Any) -> None:
    """out[at:] = acc[row:] / total for one query head."""
    factor = splat(np.float32(1) / total)
    for d in range(0, head_dim, 16):
        store(out, at + d, multiply(factor, load(acc, row + d)))


@njit(**CALLED)
def _merge_head(
    out: Any, at: Any, partials: Any, first: Any, stride: Any, splits: Any, acc: Any, head_dim: Any
) -> None:
    """Combine one query head's partial results, `stride` apart from `first` on, in the order of the splits."""
    top = LOWEST
    for s in range(splits):
        top = max(top, partials[first + s * stride + head_dim])
    total = ZERO
    for d in range(0, head_dim, 16):
        store(acc, d, splat(ZERO))
    for s in range(splits):
        part = first + s * stride
        factor = exp2(splat(partials[part + head_dim] - top))
        total += first_lane(factor) * partials[part + head_dim + 1]
        for d in range(0, head_dim, 16):
            store(acc, d, fma(factor, load(partials, part + d), load(acc, d)))
    _write_head(out, at, acc, 0, total, head_dim)


@njit(**INLINED)
def _num_splits(seq_len: Any, window: Any) -> Any:
    """Splits that a row reads; 1 for a dead row, whose zeros somebody has to write."""
    if seq_len == 0:
        return 1
    return (seq_len - 1) // SPLIT - max(0, seq_len - window) // SPLIT + 1


@njit(**INLINED)
def _find(item: Any, seq: Any, first_item: Any, first_split: Any, a: Any) -> Any:
    """Walk from a sequence and its first item to the one that `item` belongs to, num_seqs when there is none.

    Items are numbered sequence by sequence, and the numbers that a thread draws only grow.
    """
    seq_lens = pointer(a.seq_lens, np.int32)
    runs = a.num_kv_heads // a.heads_per_item
    while seq < a.num_seqs:
        splits = _num_splits(np.int64(seq_lens[seq]), a.window)
        if item < first_item + splits * runs:
            break
        first_item += splits * runs
        first_split += splits
        seq += 1
    return seq, first_item, first_split


@njit(**INLINED)
def _page_ahead(cache: Any, head: Any, then: Any, then_head: Any, table: Any, later: Any, last: Any, pages: Any) -> Any:
    """Page `later` of a pass over `cache`; past its `last` one a page from the beginning of the pass that follows."""
    if later <= last:
        return page(cache, table[later], head, pages)
    return page(then, table[min(later - last - 1, last)], then_head, pages)


@njit(**INLINED)
def _score_pass(work: Any, pages: Any, table: Any, num_pages: Any, head: Any) -> None:
    """All scores of a split; towards the last page of keys the first of values are asked for."""
    keys, values = pages.keys, pages.values
    for b in range(num_pages):
        ahead = _page_ahead(keys, head, values, head, table, b + pages.distance, num_pages - 1, pages)
        page_scores(work.scores, b * pages.block_size, work.query, page(keys, table[b], head, pages), pages, ahead)


@njit(**INLINED)
def _value_pass(work: Any, pages: Any, table: Any, num_pages: Any, count: Any, head: Any) -> None:
    """The weighted sum of a split's values; towards the last page the next head's keys are asked for."""
    keys, values, next_head = pages.keys, pages.values, min(head + 1, pages.num_kv_heads - 1)
    for b in range(num_pages):
        ahead = _page_ahead(values, head, keys, next_head, table, b + pages.distance, num_pages - 1, pages)
        at = b * pages.block_size
        at_work = page(values, table[b], head, pages)
        page_values(work.acc, work.scores, at, min(pages.block_size, count - at), at_work, pages, ahead)


@njit(**CALLED)
def _attend_split(work: Any, pages: Any, table: Any, low: Any, high: Any, head: Any, group: Any) -> None:
    """Unscaled sums of positions low..high-1 of a split in work.acc; largest scores and sums of weights in work.sums.

    `table` starts at the page of `low`.
    """
    skip = low % pages.block_size
    count = high - low + skip
    num_pages = (count + pages.block_size - 1) // pages.block_size
    _score_pass(work, pages, table, num_pages, head)
    for g in range(group):
        _softmax(work.scores, skip, count, work.sums, g, pages.padded_group)
        for d in range(0, pages.head_dim, 16):
            store(work.acc, g * pages.head_dim + d, splat(ZERO))
    _value_pass(work, pages, table, num_pages, count, head)


@njit(**INLINED)
def _keep_partial(partials: Any, at: Any, work: Any, g: Any, pages: Any) -> None:
    for d in range(0, pages.head_dim, 16):
        store(partials, at + d, load(work.acc, g * pages.head_dim + d))
    partials[at + pages.head_dim] = work.sums[g]
    partials[at + pages.head_dim + 1] = work.sums[pages.padded_group + g]


@njit(**CALLED)
def _attend_item(a: Any, work: Any, pages: Any, query: Any, out: Any, seq: Any, item: Any, first_split: Any) -> None:
    """Item `item` of sequence `seq`: a run of heads over a split."""
    group, head_dim = a.group, pages.head_dim
    seq_len = np.int64(pointer(a.seq_lens, np.int32)[seq])
    lowest = max(0, seq_len - a.window)
    splits = _num_splits(seq_len, a.window)
    runs = a.num_kv_heads // a.heads_per_item
    split, first_head = item // runs, item % runs * a.heads_per_item
    begin = (lowest // SPLIT + split) * SPLIT
    low, high = max(begin, lowest), min(seq_len, begin + SPLIT)
    slot = np.int64(pointer(a.slots, np.int32)[seq])
    table = pointer(a.block_table + 4 * (slot * a.table_stride + low // a.block_size), np.int32)
    partials, partial_floats = pointer(a.partials, np.float32), head_dim + PARTIAL_TAIL
    for j in range(group * head_dim, pages.padded_group * head_dim, 16):
        store(work.query, j, splat(ZERO))
    for head in range(first_head, first_head + a.heads_per_item):
        for j in range(0, group * head_dim, 16):
            at = seq * a.query_stride + head * group * head_dim + j
            store(work.query, j, multiply(splat(a.scale), load(query, at)))
        _attend_split(work, pages, table, low, high, head, group)
        for g in range(group):
            if splits == 1:
                at = seq * a.out_stride + (head * group + g) * head_dim
                _write_head(out, at, work.acc, g * head_dim, work.sums[pages.padded_group + g], head_dim)
            else:
                at = ((first_split + split) * a.num_kv_heads + head) * group + g
                _keep_partial(partials, at * partial_floats, work, g, pages)
    if splits == 1:
        return
    done = a.counters + 8 * (2 + seq * runs + item % runs)
    if fetch_add(done, 1) == splits - 1:
        pointer(done, np.int64)[0] = 0
        stride = a.num_kv_heads * group * partial_floats
        for h in range(first_head * group, (first_head + a.heads_per_item) * group):
            first = first_split * stride + h * partial_floats
            _merge_head(out, seq * a.out_stride + h * head_dim, partials, first, stride, splits, work.acc, head_dim)


def decode_kernel(element: type[np.generic]) -> Any:
    """The kernel for pages of `element`: np.uint16 for bf16, or np.float32."""
    itemsize = np.dtype(element).itemsize
    line = 64 // itemsize

    def attend_decodes(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        head_dim = a.head_dim
        padded = a.group + a.group % 2
        mine = pointer(a.scratch + 4 * a.scratch_floats * fetch_add(a.counters, 1), np.float32)
        rows = padded * SPLIT
        sums = padded * (SPLIT + 2 * head_dim)
        work = Work(mine, offset(mine, rows), offset(mine, rows + padded * head_dim), offset(mine, sums))
        keys, values = pointer(a.k_cache, element), pointer(a.v_cache, element)
        distance = max(1, AHEAD_BYTES // (a.block_size * head_dim * itemsize))
        pages = Pages(keys, values, a.num_kv_heads, a.block_size, head_dim, padded, line, distance)
        query, out = pointer(a.query, element), pointer(a.out, element)
        seq, first_item, first_split = 0, 0, 0
        while True:
            item = fetch_add(a.counters + 8, 1)
            seq, first_item, first_split = _find(item, seq, first_item, first_split, a)
            if seq == a.num_seqs:
                return
            if pointer(a.seq_lens, np.int32)[seq] > 0:
                _attend_item(a, work, pages, query, out, seq, item - first_item, first_split)
            elif item == first_item:
                for j in range(0, a.num_kv_heads * a.group * head_dim, 16):
                    store(out, seq * a.out_stride + j, splat(ZERO))

    return attend_decodes
