"""Attention on the CPU that reads the pages where they lie: numba kernels on torch's threads.

What it was chosen over, with figures: docs/benchmarks/cpu-attention.md.
"""

import logging
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from albireo.gpu_worker.attention import chunk_bf16, chunk_f32, chunk_items, decode_kernel
from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.chunk_items import CHUNK_ARGUMENTS
from albireo.gpu_worker.attention.decode_kernel import DECODE_ARGUMENTS, PARTIAL_TAIL
from albireo.gpu_worker.attention.decode_page import SPLIT
from albireo.gpu_worker.attention.interface import Attention
from albireo.gpu_worker.attention.oracle import OracleAttention
from albireo.gpu_worker.attention.write_kernel import WRITE_ARGUMENTS, write_kernel
from albireo.gpu_worker.kernels.launch import Kernel, is_capturing
from albireo.gpu_worker.kernels.tile import COLUMNS

logger = logging.getLogger(__name__)

_LOG2_E = math.log2(math.e)
_NO_WINDOW = 1 << 40
_ONE_THREAD_BYTES = 256 * 1024
"""Less memory than this is read sooner than a second thread wakes."""
_ITEMS_PER_THREAD = 4
"""Items of work a thread should find in a decode step, so that one slow thread does not hold up the others."""


def make_attention(dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int) -> Attention:
    """The fast attention where it takes these sizes (a rank's share of the heads), else the slow one, with a warning.

    Compiles the kernels, or loads them from numba's cache.
    """
    if dtype not in {torch.bfloat16, torch.float32}:
        raise ValueError(f"attention runs in bfloat16 or float32, not {dtype}")
    if fits_kernels(num_heads, num_kv_heads, head_dim, block_size):
        return CpuAttention(dtype, torch.get_num_threads())
    group = num_heads // num_kv_heads
    logger.warning("no fast attention for heads of %d, groups of %d and blocks of %d", head_dim, group, block_size)
    return OracleAttention()


def fits_kernels(num_heads: int, num_kv_heads: int, head_dim: int, block_size: int) -> bool:
    """Whether the fast attention takes these sizes."""
    group = num_heads // num_kv_heads
    return head_dim % 16 == 0 and block_size % 8 == 0 and SPLIT % block_size == 0 and group <= COLUMNS


def kernel_makers(dtype: torch.dtype) -> tuple[Callable[[], Kernel], Callable[[], Kernel]]:
    """What compiles or loads the kernels for pages of `dtype`: decoding, prompt chunks."""
    element = np.uint16 if dtype == torch.bfloat16 else np.float32
    chunk = chunk_bf16 if dtype == torch.bfloat16 else chunk_f32
    return (
        lambda: Kernel(decode_kernel.decode_kernel(element), DECODE_ARGUMENTS),
        lambda: Kernel(chunk.attend_chunks, CHUNK_ARGUMENTS),
    )


@cache
def _write_pages(dtype: torch.dtype) -> Kernel:
    """Made when first asked for: layers whose sizes allow it store keys and values as they rotate them."""
    return Kernel(write_kernel(np.uint16 if dtype == torch.bfloat16 else np.float32), WRITE_ARGUMENTS)


class CpuAttention:
    """`Attention` on pages of one dtype. A row's bits depend neither on the batch nor on the number of threads.

    head_dim is a multiple of 16, block_size 8 to 512 and a power of two, at most 64 query heads share a key/value
    head; heads follow one another within a token of `q` and `out`. Not for two threads at once: it owns scratch.
    """

    def __init__(self, dtype: torch.dtype, num_threads: int) -> None:
        self._dtype = dtype
        self._num_threads = num_threads
        self._decode, self._chunk = (make() for make in kernel_makers(dtype))
        self._scratch = _Floats()
        self._partials = _Floats()
        self._counters = np.zeros(0, np.int64)
        self._counters_address = 0
        self._outgrown: list[npt.NDArray[np.int64]] = []
        """What captured calls still use."""

    def write_kv(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch) -> None:
        """As `Attention.write_kv`."""
        num_tokens, num_kv_heads, head_dim = k.shape
        num_bytes = 2 * k.numel() * k.element_size()
        _write_pages(self._dtype)(
            (
                self._fresh_counters(2),
                k.data_ptr(),
                k.stride(0),
                k.stride(1),
                v.data_ptr(),
                v.stride(0),
                v.stride(1),
                k_cache.data_ptr(),
                v_cache.data_ptr(),
                k_cache.shape[2],
                num_kv_heads,
                head_dim,
                batch.slot_mapping.data_ptr(),
                num_tokens,
            ),
            1 if num_bytes < _ONE_THREAD_BYTES else self._num_threads,
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
        assert q.dtype == k_cache.dtype == self._dtype and k_cache.is_contiguous() and v_cache.is_contiguous()
        assert q.stride(1) == out.stride(1) == q.shape[2]
        if batch.num_decodes:
            self._attend_decodes(q, k_cache, v_cache, batch, scale, sliding_window or _NO_WINDOW, out)
        if batch.num_decodes < batch.slots.shape[0]:
            self._attend_chunks(q, k_cache, v_cache, batch, scale, sliding_window or _NO_WINDOW, out)

    def _attend_decodes(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float, window: int, out: Tensor
    ) -> None:
        _, num_kv_heads, block_size, head_dim = k_cache.shape
        num_seqs, num_heads = batch.num_decodes, q.shape[1]
        group = num_heads // num_kv_heads
        positions = num_seqs * min(batch.max_seq_len, window)
        small = 2 * positions * num_kv_heads * head_dim * k_cache.element_size() < _ONE_THREAD_BYTES
        num_threads = 1 if small else self._num_threads
        scratch_floats = decode_kernel.scratch_floats(group, head_dim)
        self._decode(
            (
                self._fresh_counters(2 + num_seqs * num_kv_heads),
                self._scratch.room(scratch_floats * self._num_threads),
                scratch_floats,
                self._room_for_partials(batch, num_heads * (head_dim + PARTIAL_TAIL)),
                q.data_ptr(),
                q.stride(0),
                out.data_ptr(),
                out.stride(0),
                k_cache.data_ptr(),
                v_cache.data_ptr(),
                block_size,
                num_kv_heads,
                head_dim,
                heads_per_item(num_kv_heads, num_seqs, num_threads),
                group,
                batch.block_table.data_ptr(),
                batch.block_table.stride(0),
                batch.slots.data_ptr(),
                batch.seq_lens.data_ptr(),
                num_seqs,
                window,
                scale * _LOG2_E,
                0,
            ),
            num_threads,
        )

    def _attend_chunks(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float, window: int, out: Tensor
    ) -> None:
        _, num_kv_heads, block_size, head_dim = k_cache.shape
        scratch_floats = chunk_items.scratch_floats(head_dim)
        self._chunk(
            (
                self._fresh_counters(2),
                self._scratch.room(scratch_floats * self._num_threads),
                scratch_floats,
                q.data_ptr(),
                q.stride(0),
                out.data_ptr(),
                out.stride(0),
                k_cache.data_ptr(),
                v_cache.data_ptr(),
                block_size,
                num_kv_heads,
                head_dim,
                q.shape[1] // num_kv_heads,
                batch.block_table.data_ptr(),
                batch.block_table.stride(0),
                batch.slots.data_ptr(),
                batch.seq_lens.data_ptr(),
                batch.query_start.data_ptr(),
                batch.num_decodes,
                batch.slots.shape[0],
                window,
                scale * _LOG2_E,
                0,
            ),
            self._num_threads,
        )

    def _fresh_counters(self, n: int) -> int:
        """Address of n int64 counters at 0. The kernels leave all but the first two at 0."""
        if self._counters.size < n:
            if is_capturing():
                self._outgrown.append(self._counters)
            self._counters = np.zeros(n, np.int64)
            self._counters_address = self._counters.ctypes.data
        self._counters[:2] = 0
        return self._counters_address

    def _room_for_partials(self, batch: AttentionBatch, floats_per_split: int) -> int:
        """Address of room for the partial results of all splits of a step whose longest sequence has several."""
        if batch.max_seq_len <= SPLIT:
            return 0
        # a sequence has at most a split more than its full ones; a captured step's lengths are not known yet
        num_tokens = batch.num_decodes * batch.max_seq_len
        if not is_capturing():
            num_tokens = int(batch.seq_lens[: batch.num_decodes].sum())
        splits = num_tokens // SPLIT + batch.num_decodes
        return self._partials.room(splits * floats_per_split)


class _Floats:
    """fp32 memory that grows with what is asked of it. Starts anywhere: kernels write before they read."""

    def __init__(self) -> None:
        self._tensor = torch.empty(0)
        self._outgrown: list[Tensor] = []
        """What captured calls still use."""
        self._size = 0
        self._address = 0

    def room(self, size: int) -> int:
        """Address of at least `size` numbers."""
        if self._size < size:
            if is_capturing():
                self._outgrown.append(self._tensor)
            self._tensor = torch.empty(size)
            self._size, self._address = size, self._tensor.data_ptr()
        return self._address


def heads_per_item(num_kv_heads: int, num_seqs: int, num_threads: int) -> int:
    """How many neighbouring heads a decode item takes: many read memory in longer runs, few share out better."""
    heads = num_kv_heads
    while heads % 2 == 0 and num_seqs * (num_kv_heads // heads) < _ITEMS_PER_THREAD * num_threads:
        heads //= 2
    return heads
