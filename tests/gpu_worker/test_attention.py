"""The CPU attention against the oracle, and against itself: alone, in batches, chunked, on one and two threads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.cpu import CpuAttention, heads_per_item, make_attention
from albireo.gpu_worker.attention.interface import Attention
from albireo.gpu_worker.attention.oracle import OracleAttention

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2}
"""Scores and outputs are of order 1: fp32 sums in another order; one rounding of a result up to 4 to bf16."""


@dataclass(frozen=True)
class Sequence_:  # noqa: N801
    """`seq_len` tokens in the cache, the last `query_len` of them this step's. seq_len 0 is a dead row."""

    seq_len: int
    query_len: int = 1


@dataclass(frozen=True)
class Heads:
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.float32


@pytest.fixture(scope="module")
def fast() -> dict[torch.dtype, CpuAttention]:
    return {dtype: CpuAttention(dtype, 2) for dtype in TOLERANCE}
