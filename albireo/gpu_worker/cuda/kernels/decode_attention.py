"""Attention of decode rows, one query token each, over pages: every row's keys are shared out over several programs.

The step's tiles of keys are counted on the device and dealt out in equal shares, so that a lone long row is read by as
many programs as many short ones: only the number of shares is fixed when a CUDA graph is captured, not who gets them.
A row of several shares has its partial results combined by a second kernel ("Flash-Decoding", Dao et al., 2023).
"""

import triton
import triton.language as tl

from albireo.gpu_worker.cuda.kernels.attention_tile import LEAST, fold_in, mean, nothing_seen, rows_of, score


@triton.jit
def _span(seq_len, window, HAS_WINDOW: tl.constexpr, ALIGN: tl.constexpr, BLOCK_N: tl.constexpr):
    """First position that is looked at, rounded down to `ALIGN`, and the number of tiles from there on."""
    first = 0
    if HAS_WINDOW:
        first = tl.maximum(seq_len - window, 0) // ALIGN * ALIGN
    return first, (seq_len - first + BLOCK_N - 1) // BLOCK_N


@triton.jit
def find_share(
    share, seq_lens, num_rows, num_shares, least_tiles, window,
    HAS_WINDOW: tl.constexpr, ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The row that `share` belongs to (num_rows: nobody's), the row's first share, and the row's number of shares.

    A row has at least one share, so that somebody zeroes a dead row's output.
    """
    lane = tl.arange(0, ROWS)
    num_tiles = 0
    for start in range(0, num_rows, ROWS):
        seq_len = tl.load(seq_lens + start + lane, mask=start + lane < num_rows, other=0)
        _, tiles = _span(seq_len, window, HAS_WINDOW, ALIGN, BLOCK_N)
        num_tiles += tl.sum(tiles, 0)
    share_tiles = tl.maximum((num_tiles + num_shares - 1) // num_shares, least_tiles)
    row, first, count, end = 0, 0, 0, 0
    for start in range(0, num_rows, ROWS):
        is_row = start + lane < num_rows
        seq_len = tl.load(seq_lens + start + lane, mask=is_row, other=0)
        _, tiles = _span(seq_len, window, HAS_WINDOW, ALIGN, BLOCK_N)
        shares = tl.where(is_row, tl.maximum((tiles + share_tiles - 1) // share_tiles, 1), 0)
        ends = end + tl.cumsum(shares, 0)
        is_before = is_row & (ends <= share)
        row += tl.sum(is_before.to(tl.int32), 0)
        first += tl.sum(tl.where(is_before, shares, 0), 0)
        count += tl.sum(tl.where((ends > share) & (ends - shares <= share), shares, 0), 0)
        end += tl.sum(shares, 0)
    return row, first, count


@triton.jit(
    do_not_specialize=[
        "slots",
        "seq_lens",
        "block_table",
        "num_rows",
        "num_shares",
        "least_tiles",
        "window",
        "table_stride",
    ]
)
def decode_kernel(
    q,  # [num_rows, NUM_KV_HEADS * GROUP, HEAD_DIM], strided
    k_cache,  # [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM], contiguous
    v_cache,  # the same
    block_table,  # int32 [num_slots, table_stride]
    slots,  # int32 [num_rows], may be -1 where seq_lens is 0
    seq_lens,  # int32 [num_rows]
    out,  # as q
    partials,  # out fp32 [shares, NUM_KV_HEADS * GROUP, HEAD_DIM], read and written if CAN_SPLIT, as the next two
    partial_logs,  # out fp32 [shares, NUM_KV_HEADS * GROUP]: log2 of the sum of a share's exponentials
    row_shares,  # out int32 [num_rows, 2]: first share, number of shares
    num_rows,
    num_shares,  # that work is cut into, rows' last ones aside
    least_tiles,  # of a share, if its row has as many
    window,
    scale,  # includes log2(e)
    table_stride,
    q_stride,
    q_head_stride,
    out_stride,
    out_head_stride,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    ALIGN: tl.constexpr,  # of the first position that is read: BLOCK_SIZE, or BLOCK_N if that is less
    CAN_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,  # GROUP, or the power of two above it, at least 16
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,  # HEAD_DIM, or the power of two above it
    ROWS: tl.constexpr,  # looked at together in search of a share
    IN_FP32: tl.constexpr,
):
    """Grid [NUM_KV_HEADS, num_rows + num_shares if CAN_SPLIT else num_rows]: a share, for one key head's queries."""
    head = tl.program_id(0)
    share = tl.program_id(1)
    row, first_share, shares = share, share, 1
    if CAN_SPLIT:
        row, first_share, shares = find_share(
            share, seq_lens, num_rows, num_shares, least_tiles, window, HAS_WINDOW, ALIGN, BLOCK_N, ROWS
        )
        if row >= num_rows:
            return
        if (head == 0) & (share == first_share):
            tl.store(row_shares + 2 * row, first_share)
            tl.store(row_shares + 2 * row + 1, shares)

    seq_len = tl.load(seq_lens + row)
    first, num_tiles = _span(seq_len, window, HAS_WINDOW, ALIGN, BLOCK_N)
    share_tiles = (num_tiles + shares - 1) // shares
    begin = first + (share - first_share) * share_tiles * BLOCK_N
    end = tl.minimum(begin + share_tiles * BLOCK_N, seq_len)
    lowest = begin
    if HAS_WINDOW:
        lowest = tl.maximum(begin, seq_len - window)

    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    q_head = head * GROUP + m
    inside = (m[:, None] < GROUP) & (d[None, :] < HEAD_DIM)
    row_wide = row.to(tl.int64)
    query = tl.load(q + row_wide * q_stride + q_head[:, None] * q_head_stride + d[None, :], mask=inside, other=0.0)
    table = block_table + tl.maximum(tl.load(slots + row), 0).to(tl.int64) * table_stride
    top, total, acc = nothing_seen(BLOCK_M, BLOCK_D)
    position = begin + n
    block = tl.load(table + position // BLOCK_SIZE, mask=(position >= lowest) & (position < end), other=0)
    for start in range(begin, end, BLOCK_N):
        position = start + n
        is_seen = (position >= lowest) & (position < end)
        at = rows_of(block, position, head, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)[:, None] + d[None, :]
        # the next tile's blocks, a tile ahead of the keys that they lead to
        block = tl.load(table + (position + BLOCK_N) // BLOCK_SIZE, mask=position + BLOCK_N < end, other=0)
        is_read = is_seen[:, None] & (d[None, :] < HEAD_DIM)
        k = tl.load(k_cache + at, mask=is_read, other=0.0)
        scores = tl.where(is_seen[None, :], score(query, k, IN_FP32), float("-inf"))
        v = tl.load(v_cache + at, mask=is_read, other=0.0)
        top, total, acc = fold_in(scores, v, top, total, acc, scale, IN_FP32)

    result = mean(acc, total)
    if shares == 1:
        to = out + row_wide * out_stride + q_head[:, None] * out_head_stride + d[None, :]
        tl.store(to, result.to(out.dtype.element_ty), mask=inside)
    elif CAN_SPLIT:
        at_head = share.to(tl.int64) * (NUM_KV_HEADS * GROUP) + q_head
        tl.store(partials + at_head[:, None] * HEAD_DIM + d[None, :], result, mask=inside)
        # a share of nothing, which rounding to whole tiles may leave, weighs nothing
        tl.store(partial_logs + at_head, tl.where(total == 0.0, LEAST, top + tl.log2(total)), mask=m < GROUP)


@triton.jit
def combine_kernel(
    partials,  # fp32 [shares, NUM_HEADS, HEAD_DIM]
    partial_logs,  # fp32 [shares, NUM_HEADS]
    row_shares,  # int32 [rows, 2]
    out,  # [rows, NUM_HEADS, HEAD_DIM], strided
    out_stride,
    out_head_stride,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A row's partial results, weighted by the sums of their exponentials; grid [tiles of BLOCK_H heads, rows].

    Rows of a single share have their output already.
    """
    row = tl.program_id(1)
    first = tl.load(row_shares + 2 * row)
    count = tl.load(row_shares + 2 * row + 1)
    if count <= 1:
        return
    h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    inside = (h[:, None] < NUM_HEADS) & (d[None, :] < HEAD_DIM)
    top, total, acc = nothing_seen(BLOCK_H, BLOCK_D)
    for start in range(0, count, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        at = (first + s).to(tl.int64)[:, None] * NUM_HEADS + h[None, :]
        logs = tl.load(partial_logs + at, mask=(s[:, None] < count) & (h[None, :] < NUM_HEADS), other=float("-inf"))
        is_read = (s[:, None, None] < count) & inside[None, :, :]
        part = tl.load(partials + at[:, :, None] * HEAD_DIM + d[None, None, :], mask=is_read, other=0.0)
        new_top = tl.maximum(top, tl.max(logs, 0))
        decay = tl.exp2(top - new_top)
        weights = tl.exp2(logs - new_top[None, :])
        total = total * decay + tl.sum(weights, 0)
        acc = acc * decay[:, None] + tl.sum(part * weights[:, :, None], 0)
        top = new_top
    to = out + row.to(tl.int64) * out_stride + h[:, None] * out_head_stride + d[None, :]
    tl.store(to, mean(acc, total).to(out.dtype.element_ty), mask=inside)
