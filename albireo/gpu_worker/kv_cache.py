"""The paged KV cache: per layer, keys and values of all blocks."""

import mmap
from contextlib import suppress
from typing import Self

import torch
from torch import Tensor

from albireo.checkpoint.structs import ModelConfig, kv_bytes_per_block
from albireo.config import Dtype
from albireo.gpu_worker.weights import CPU


class KVCache:
    """Keys and values `[num_blocks, num_kv_heads, block_size, head_dim]` per layer, contiguous, zero at first.

    A block's tokens of one head lie together, so that attention streams through them. On the CPU memory is taken, 2 MB
    of a tensor at a time, when it is first written: blocks that were never used cost nothing.
    """

    def __init__(
        self,
        model: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device = CPU,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        shape = (num_blocks, model.num_kv_heads, block_size, model.head_dim)

        def pages() -> Tensor:
            return _untouched_zeros(shape, dtype) if device == CPU else torch.zeros(shape, dtype=dtype, device=device)

        self.layers: list[tuple[Tensor, Tensor]] = [(pages(), pages()) for _ in range(model.num_layers)]

    @classmethod
    def allocate(cls, model: ModelConfig, dtype: Dtype, block_size: int, kv_cache_bytes: int) -> Self:
        """As many blocks as fit into `kv_cache_bytes`."""
        num_blocks = kv_cache_bytes // kv_bytes_per_block(model, block_size, dtype)
        return cls(model, num_blocks, block_size, getattr(torch, dtype))


def _untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros as the kernel hands them out, on first use. torch.zeros would write every page now."""
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # blocks lie anywhere, so with pages of 4 KB every few of them miss the TLB (docs/benchmarks/cpu-attention.md)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
