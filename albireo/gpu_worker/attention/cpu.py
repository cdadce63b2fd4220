"""Attention on the CPU that reads the pages where they lie: numba kernels on torch's threads."""

import math

import numpy as np
import torch
from torch import Tensor

from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.decode_kernel import DECODE_ARGUMENTS, PARTIAL_TAIL, decode_kernel, scratch_floats
from albireo.gpu_worker.attention.decode_page import SPLIT
from albireo.gpu_worker.kernels.launch import Kernel


class CpuAttention:
    def __init__(self, head_dim, num_heads, num_kv_heads, block_size, dtype):
        self.head_dim = head_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.block_size = block_size
        self.group = num_heads // num_kv_heads
        el = np.uint16 if dtype == torch.bfloat16 else np.float32
        self.decode = Kernel(decode_kernel(el), DECODE_ARGUMENTS)
        self.threads = torch.get_num_threads()
        self.floats = -(-scratch_floats(self.group, head_dim) // 16) * 16
        self.scratch = torch.zeros(self.threads, self.floats)
        self.counters = np.zeros(8192, np.int64)
        self.partials = torch.zeros(16)
        self.args = np.zeros(1, DECODE_ARGUMENTS)
        self.args_address = self.args.ctypes.data

    def attend(self, q, k_cache, v_cache, batch, scale, sliding_window, out, threads=None, hpi=None):
        n = batch.num_decodes
        if batch.max_seq_len > SPLIT:
            need = (int(batch.seq_lens.sum()) // SPLIT + 2 * n) * self.num_heads * (self.head_dim + PARTIAL_TAIL)
            if self.partials.numel() < need:
                self.partials = torch.zeros(need)
        threads = threads or self.threads
        if hpi is None:
            hpi = self.num_kv_heads
            while hpi % 2 == 0 and n * (self.num_kv_heads // hpi) < 4 * threads:
                hpi //= 2
        self.counters[:2] = 0
        a = self.args
        a[0] = (
            self.counters.ctypes.data,
            self.scratch.data_ptr(),
            self.floats,
            self.partials.data_ptr(),
            q.data_ptr(),
            q.stride(0),
            out.data_ptr(),
            out.stride(0),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            self.block_size,
            self.num_kv_heads,
            self.head_dim,
            hpi,
            self.group,
            batch.block_table.data_ptr(),
            batch.block_table.stride(0),
            batch.slots.data_ptr(),
            batch.seq_lens.data_ptr(),
            n,
            sliding_window or 1 << 40,
            scale * math.log2(math.e),
            0,
        )
        self.decode(self.args_address, threads)
