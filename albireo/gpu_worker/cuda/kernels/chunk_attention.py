"""Attention of prompt chunks, several query tokens a sequence, over pages that hold their own keys already."""

import triton
import triton.language as tl

from albireo.gpu_worker.cuda.kernels.attention_tile import LEAST, fold_in, rows_of, score


@triton.jit(
    do_not_specialize=["slots", "query_start", "seq_lens", "block_table", "first_seq", "window", "table_stride"]
)
def chunk_kernel(
    q,  # [num_tokens, NUM_KV_HEADS * GROUP, HEAD_DIM], strided
    k_cache,  # [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM], contiguous
    v_cache,  # the same
    block_table,  # int32 [num_slots, table_stride]
    slots,  # int32 [num_seqs]
    query_start,  # int32 [num_seqs + 1]
    seq_lens,  # int32 [num_seqs]
    out,  # as q
    first_seq,  # decode rows come before
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
    ALIGN: tl.constexpr,  # of the first key that is read: BLOCK_SIZE, or BLOCK_N if that is less
    BLOCK_M: tl.constexpr,  # at least GROUP
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,  # HEAD_DIM, or the power of two above it
    IN_FP32: tl.constexpr,
):
    """Grid [NUM_KV_HEADS, sequences, tiles of the longest query]: the queries of one key head in BLOCK_M // GROUP tokens.

    A sequence's last tiles, which see most, come first.
    """
    head = tl.program_id(0)
    seq = first_seq + tl.program_id(1)
    tokens: tl.constexpr = BLOCK_M // GROUP
    first_row = tl.load(query_start + seq)
    query_len = tl.load(query_start + seq + 1) - first_row
    tile = (query_len + tokens - 1) // tokens - 1 - tl.program_id(2)
    if tile < 0:
        return
    seq_len = tl.load(seq_lens + seq)
    table = block_table + tl.maximum(tl.load(slots + seq), 0).to(tl.int64) * table_stride

    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    in_head = d[None, :] < HEAD_DIM
    token = tile * tokens + m // GROUP
    inside = ((m < tokens * GROUP) & (token < query_len))[:, None] & in_head
    row = (first_row + token).to(tl.int64)
    q_head = head * GROUP + m % GROUP
    at_query = row[:, None] * q_stride + q_head[:, None] * q_head_stride + d[None, :]
    query = tl.load(q + at_query, mask=inside, other=0.0)

    first_position = seq_len - query_len + tile * tokens  # negative in a dead sequence, which has no keys
    position = first_position + m // GROUP
    end = tl.minimum(first_position + tokens, seq_len)
    top = tl.full((BLOCK_M,), LEAST, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    lowest = 0
    if HAS_WINDOW:
        lowest = tl.maximum(first_position - window + 1, 0)
        begin = lowest // ALIGN * ALIGN
    else:
        # keys that all of the tile's queries see: no masks
        whole = tl.maximum(first_position + 1, 0) // BLOCK_N * BLOCK_N
        block = tl.load(table + n // BLOCK_SIZE, mask=n < end, other=0)
        for start in range(0, whole, BLOCK_N):
            key = start + n
            at = rows_of(block, key, head, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)[:, None] + d[None, :]
            # the next tile's blocks, a tile ahead of the keys that they lead to
            block = tl.load(table + (key + BLOCK_N) // BLOCK_SIZE, mask=key + BLOCK_N < end, other=0)
            k = tl.load(k_cache + at, mask=in_head, other=0.0)
            v = tl.load(v_cache + at, mask=in_head, other=0.0)
            top, total, acc = fold_in(score(query, k, IN_FP32), v, top, total, acc, scale, IN_FP32)
        begin = whole
    key = begin + n
    block = tl.load(table + key // BLOCK_SIZE, mask=(key >= lowest) & (key < end), other=0)
    for start in range(begin, end, BLOCK_N):
        key = start + n
        is_key = (key >= lowest) & (key < end)
        at = rows_of(block, key, head, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)[:, None] + d[None, :]
        block = tl.load(table + (key + BLOCK_N) // BLOCK_SIZE, mask=key + BLOCK_N < end, other=0)
        k = tl.load(k_cache + at, mask=is_key[:, None] & in_head, other=0.0)
        v = tl.load(v_cache + at, mask=is_key[:, None] & in_head, other=0.0)
        is_seen = key[None, :] <= position[:, None]
        if HAS_WINDOW:
            is_seen = is_seen & (key[None, :] > position[:, None] - window)
        scores = tl.where(is_seen, score(query, k, IN_FP32), float("-inf"))
        top, total, acc = fold_in(scores, v, top, total, acc, scale, IN_FP32)

    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    to = out + row[:, None] * out_stride + q_head[:, None] * out_head_stride + d[None, :]
    tl.store(to, result.to(out.dtype.element_ty), mask=inside)
