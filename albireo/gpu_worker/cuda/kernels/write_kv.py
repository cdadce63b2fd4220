"""A step's keys and values into their pages, where no other kernel has stored them on its way."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["slot_mapping"])
def write_kv_kernel(
    k,  # [num_tokens, NUM_KV_HEADS, HEAD_DIM], strided
    v,  # the same
    k_cache,  # out [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM], contiguous
    v_cache,  # the same
    slot_mapping,  # int64 [num_tokens]: block * BLOCK_SIZE + offset, -1 stores nothing
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,  # NUM_KV_HEADS, or the power of two above it
    BLOCK_D: tl.constexpr,  # HEAD_DIM, or the power of two above it
):
    """Grid [tokens]."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK_H)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    slot = tl.load(slot_mapping + token)
    inside = (head < NUM_KV_HEADS) & (d < HEAD_DIM) & (slot >= 0)
    page = slot // BLOCK_SIZE * NUM_KV_HEADS + head
    to = (page * BLOCK_SIZE + slot % BLOCK_SIZE) * HEAD_DIM + d
    key = tl.load(k + token * k_stride + head * k_head_stride + d, mask=inside, other=0.0)
    tl.store(k_cache + to, key, mask=inside)
    value = tl.load(v + token * v_stride + head * v_head_stride + d, mask=inside, other=0.0)
    tl.store(v_cache + to, value, mask=inside)
