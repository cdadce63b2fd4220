"""Between a layer's first product and its attention, in one pass: queries and keys normalised per head and rotated,
keys and values into their pages."""

import triton
import triton.language as tl


@triton.jit
def rotate_and_store_kernel(
    qkv,  # [rows, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM], rows qkv_stride elements apart
    query,  # out [rows, NUM_HEADS, HEAD_DIM], contiguous
    k_cache,  # out [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM], contiguous
    v_cache,  # the same
    qk_norm,  # [NUM_HEADS + NUM_KV_HEADS, HEAD_DIM], read if HAS_NORM
    table,  # fp32 [positions, 2, HEAD_DIM / 2]: cosines, sines
    positions,  # int32 or int64 [rows]
    slot_mapping,  # int64 [rows]: block * BLOCK_SIZE + offset, -1 stores no key and no value
    qkv_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    HALF: tl.constexpr,  # HEAD_DIM / 2, or the power of two above it
):
    """Grid [rows, tiles of TILE_HEADS heads]; a tile holds the lower and the upper halves of its heads, which may be
    queries, keys and values."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * TILE_HEADS + tl.arange(0, TILE_HEADS)[:, None]
    i = tl.arange(0, HALF)[None, :]
    half: tl.constexpr = HEAD_DIM // 2
    rotated: tl.constexpr = NUM_HEADS + NUM_KV_HEADS
    in_half = i < half
    inside = in_half & (head < rotated + NUM_KV_HEADS)

    at = qkv + row * qkv_stride + head * HEAD_DIM + i
    lower_in = tl.load(at, mask=inside, other=0.0)
    upper_in = tl.load(at + half, mask=inside, other=0.0)
    lower, upper = lower_in.to(tl.float32), upper_in.to(tl.float32)
    if HAS_NORM:
        total = tl.sum(lower * lower + upper * upper, 1)[:, None]
        scale = tl.rsqrt(total / HEAD_DIM + eps)
        factor = qk_norm + head * HEAD_DIM + i
        has_factor = in_half & (head < rotated)
        lower = lower * scale * tl.load(factor, mask=has_factor, other=0.0).to(tl.float32)
        upper = upper * scale * tl.load(factor + half, mask=has_factor, other=0.0).to(tl.float32)
    angle = table + tl.load(positions + row).to(tl.int64) * HEAD_DIM + i
    cos = tl.load(angle, mask=in_half, other=0.0)
    sin = tl.load(angle + half, mask=in_half, other=0.0)
    element = query.dtype.element_ty
    turned_lower = (lower * cos - upper * sin).to(element)
    turned_upper = (upper * cos + lower * sin).to(element)

    is_query = in_half & (head < NUM_HEADS)
    to_query = query + (row * NUM_HEADS + head) * HEAD_DIM + i
    tl.store(to_query, turned_lower, mask=is_query)
    tl.store(to_query + half, turned_upper, mask=is_query)

    slot = tl.load(slot_mapping + row)
    is_stored = inside & (slot >= 0)
    is_key = is_stored & (head >= NUM_HEADS) & (head < rotated)
    is_value = is_stored & (head >= rotated)
    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    to_key = ((block * NUM_KV_HEADS + head - NUM_HEADS) * BLOCK_SIZE + offset) * HEAD_DIM + i
    tl.store(k_cache + to_key, turned_lower, mask=is_key)
    tl.store(k_cache + to_key + half, turned_upper, mask=is_key)
    to_value = ((block * NUM_KV_HEADS + head - rotated) * BLOCK_SIZE + offset) * HEAD_DIM + i
    tl.store(v_cache + to_value, lower_in, mask=is_value)
    tl.store(v_cache + to_value + half, upper_in, mask=is_value)
