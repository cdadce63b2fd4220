"""Attention on the GPU by Triton kernels that read the pages where they lie."""

import math
from dataclasses import dataclass
from typing import Final

import torch
import triton
from torch import Tensor

from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.cuda.kernels.chunk_attention import chunk_kernel
from albireo.gpu_worker.cuda.kernels.decode_attention import combine_kernel, decode_kernel
from albireo.gpu_worker.cuda.kernels.write_kv import write_kv_kernel

LOG2_E: Final = math.log2(math.e)
NO_WINDOW: Final = (1 << 31) - 1
LEAST_ROWS: Final = 16
"""Rows of a tensor-core tile."""
FEW_ROWS: Final = 32
"""Decode rows that a warp looks through in one go for its share of them; more are taken in tiles of `MANY_ROWS`."""
MANY_ROWS: Final = 256
COMBINE_TILE: Final = 4096
"""fp32 partial results that a program of four warps has on their way at once."""


@dataclass(frozen=True, slots=True)
class DecodeTiles:
    """How decode attention is cut up."""

    block_n: int
    """Keys in a tile, a power of two, at least 16."""
    num_warps: int = 4
    num_stages: int = 3
    shares_per_processor: int = 4
    """Programs per multiprocessor that the keys of all rows are dealt out to, one more per row aside."""
    least_tokens: int = 128
    """Keys that a program should have at least: fewer cost more to combine than they save."""


@dataclass(frozen=True, slots=True)
class ChunkTiles:
    """How the attention of prompt chunks is cut up; powers of two, at least 16."""

    block_m: int
    """Queries in a tile: all query heads of a key head, so block_m // group tokens."""
    block_n: int
    """Keys in a tile."""
    num_warps: int = 4
    num_stages: int = 2


def choose_decode_tiles(head_dim: int, dtype: torch.dtype) -> DecodeTiles:
    """16 KiB of keys a tile, so that keys and values of two tiles on their way take 64 KiB of shared memory."""
    row_bytes = triton.next_power_of_2(head_dim) * dtype.itemsize
    return DecodeTiles(block_n=min(128, max(16, 16384 // row_bytes)))


def choose_chunk_tiles(head_dim: int, dtype: torch.dtype) -> ChunkTiles:
    """Tensor cores want large tiles; fp32 has none that sum in fp32, and its tiles must fit the registers."""
    wide = triton.next_power_of_2(head_dim)
    if dtype == torch.float32:
        return ChunkTiles(32, 32) if wide <= 64 else ChunkTiles(16, 16)
    if wide <= 128:
        return ChunkTiles(block_m=128, block_n=64, num_warps=8)
    return ChunkTiles(block_m=64, block_n=32)


class TritonAttention:
    """`Attention` by Triton kernels, bf16 or fp32; block_size is a power of two.

    A decode step can be captured in a CUDA graph: lengths, slots and blocks are read on the device, and grids depend
    on `num_decodes` and on `max_seq_len`, which may be any bound on the lengths. In how many shares a decode row is
    read depends on the lengths of all rows, and the order of its sums with it. Stateless: scratch is of the call.
    """

    def __init__(
        self,
        num_multiprocessors: int = 132,
        decode_tiles: DecodeTiles | None = None,
        chunk_tiles: ChunkTiles | None = None,
    ) -> None:
        self._num_multiprocessors = num_multiprocessors
        self._decode_tiles = decode_tiles
        self._chunk_tiles = chunk_tiles

    def write_kv(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch) -> None:
        """As `Attention.write_kv`."""
        num_tokens, num_kv_heads, head_dim = k.shape
        if num_tokens == 0:
            return
        write_kv_kernel[(num_tokens,)](
            k,
            v,
            k_cache,
            v_cache,
            batch.slot_mapping,
            k.stride(0),
            k.stride(1),
            v.stride(0),
            v.stride(1),
            NUM_KV_HEADS=num_kv_heads,
            HEAD_DIM=head_dim,
            BLOCK_SIZE=k_cache.shape[2],
            BLOCK_H=triton.next_power_of_2(num_kv_heads),
            BLOCK_D=triton.next_power_of_2(head_dim),
            num_warps=4,
        )

    def attend(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        batch: AttentionBatch,
        scale: float,
        sliding_window: int | None,
        out: Tensor,
    ) -> None:
        """As `Attention.attend`."""
        assert q.dtype == k_cache.dtype and k_cache.is_contiguous() and v_cache.is_contiguous() and scale > 0
        if batch.num_decodes:
            self._attend_decodes(q, k_cache, v_cache, batch, scale, sliding_window, out)
        if batch.num_decodes < batch.slots.shape[0]:
            self._attend_chunks(q, k_cache, v_cache, batch, scale, sliding_window, out)

    def _attend_decodes(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float,
        sliding_window: int | None, out: Tensor,
    ) -> None:  # fmt: skip
        rows, (_, num_heads, head_dim), num_kv_heads = batch.num_decodes, q.shape, k_cache.shape[1]
        tiles = self._decode_tiles or choose_decode_tiles(head_dim, q.dtype)
        constants = _constants(q, k_cache, sliding_window, tiles.block_n)
        longest = min(batch.max_seq_len, sliding_window + constants["ALIGN"] - 1 if sliding_window else NO_WINDOW)
        least_tiles = max(1, tiles.least_tokens // tiles.block_n)
        most = triton.cdiv(longest, least_tiles * tiles.block_n)
        shares = triton.cdiv(tiles.shares_per_processor * self._num_multiprocessors, num_kv_heads)
        can_split = most > 1
        # all rows together have fewer than `shares` and one each
        grid_shares = min(rows + shares, rows * most) if can_split else rows
        scratch = grid_shares if can_split else 0
        partials = torch.empty(scratch, num_heads, head_dim, device=q.device)
        partial_logs = torch.empty(scratch, num_heads, device=q.device)
        row_shares = torch.empty(rows if can_split else 0, 2, dtype=torch.int32, device=q.device)
        decode_kernel[(num_kv_heads, grid_shares)](
            q,
            k_cache,
            v_cache,
            batch.block_table,
            batch.slots,
            batch.seq_lens,
            out,
            partials,
            partial_logs,
            row_shares,
            rows,
            shares,
            least_tiles,
            sliding_window or NO_WINDOW,
            scale * LOG2_E,
            batch.block_table.stride(0),
            q.stride(0),
            q.stride(1),
            out.stride(0),
            out.stride(1),
            **constants,
            CAN_SPLIT=can_split,
            BLOCK_M=max(LEAST_ROWS, triton.next_power_of_2(constants["GROUP"])),
            BLOCK_N=tiles.block_n,
            ROWS=FEW_ROWS if rows <= FEW_ROWS else MANY_ROWS,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
        if can_split:
            _combine(partials, partial_logs, row_shares, out)

    def _attend_chunks(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float,
        sliding_window: int | None, out: Tensor,
    ) -> None:  # fmt: skip
        tiles = self._chunk_tiles or choose_chunk_tiles(q.shape[2], q.dtype)
        constants = _constants(q, k_cache, sliding_window, tiles.block_n)
        group = constants["GROUP"]
        block_m = max(tiles.block_m, triton.next_power_of_2(group))
        num_chunks = batch.slots.shape[0] - batch.num_decodes
        grid = (k_cache.shape[1], num_chunks, triton.cdiv(batch.max_query_len, block_m // group))
        chunk_kernel[grid](
            q,
            k_cache,
            v_cache,
            batch.block_table,
            batch.slots,
            batch.query_start,
            batch.seq_lens,
            out,
            batch.num_decodes,
            sliding_window or NO_WINDOW,
            scale * LOG2_E,
            batch.block_table.stride(0),
            q.stride(0),
            q.stride(1),
            out.stride(0),
            out.stride(1),
            **constants,
            BLOCK_M=block_m,
            BLOCK_N=tiles.block_n,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )


def _constants(q: Tensor, k_cache: Tensor, sliding_window: int | None, block_n: int) -> dict[str, int]:
    """What both kernels are compiled for."""
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    return {
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP": q.shape[1] // num_kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "HAS_WINDOW": sliding_window is not None,
        "ALIGN": min(block_size, block_n),
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "IN_FP32": not q.is_cuda,
    }


def _combine(partials: Tensor, partial_logs: Tensor, row_shares: Tensor, out: Tensor) -> None:
    """Rows of several shares of `partials` [shares, num_heads, head_dim] into `out`."""
    _, num_heads, head_dim = partials.shape
    block_d = triton.next_power_of_2(head_dim)
    block_h = min(4, triton.next_power_of_2(num_heads), max(1, COMBINE_TILE // 4 // block_d))
    combine_kernel[(triton.cdiv(num_heads, block_h), row_shares.shape[0])](
        partials,
        partial_logs,
        row_shares,
        out,
        out.stride(0),
        out.stride(1),
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        BLOCK_S=max(1, COMBINE_TILE // (block_h * block_d)),
        BLOCK_H=block_h,
        BLOCK_D=block_d,
        num_warps=4,
    )
