"""What the GPU's attention is timed beside: torch's and FlashInfer's, each where this machine has it.

Ways that need keys in a row get a copy, whose making is not timed. torch's paged attention takes blocks of 256 tokens
with the heads inside; it reads the same memory under that shape, so as many bytes and other numbers.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

PAGE: Final = 256
"""Tokens in a block of torch's paged attention."""
COPY_BYTES: Final = 8 << 30
Calls = Sequence[Callable[[], object]]


@dataclass(frozen=True)
class Pages:
    """One layer's keys and values, and the sequences that own some of them."""

    k_cache: Tensor
    v_cache: Tensor
    """[num_blocks, num_kv_heads, block_size, head_dim]."""
    block_table: Tensor
    """int32 [num_seqs, blocks of the longest]."""
    lengths: tuple[int, ...]

    def gather(self) -> tuple[Tensor, Tensor]:
        """Copies [num_seqs, num_kv_heads, length, head_dim] of sequences of one length."""
        _, num_kv_heads, _, head_dim = self.k_cache.shape
        num_seqs, length = len(self.lengths), self.lengths[0]
        blocks = self.block_table.long().flatten()
        k, v = (
            cache[blocks]
            .view(num_seqs, -1, num_kv_heads, cache.shape[2], head_dim)
            .transpose(1, 2)
            .reshape(num_seqs, num_kv_heads, -1, head_dim)[:, :, :length]
            for cache in (self.k_cache, self.v_cache)
        )
        return k, v

    def copy_bytes(self) -> int:
        return 4 * self.block_table.numel() * self.k_cache[0].numel()


@dataclass(frozen=True)
class Peer:
    name: str
    prepare: Callable[[], Calls]
    """Everything but the work itself; raises what this machine's versions raise."""


def decode_peers(q: Tensor, replayed: Sequence[Pages], scale: float) -> list[Peer]:
    """`q` [num_seqs, num_heads, head_dim], one token of each sequence; `replayed`: the pages of each call."""
    return [
        Peer("SDPA on a copy", partial(_sdpa_decode, q, replayed, scale)),
        Peer("torch varlen, paged", partial(_varlen, q, replayed, scale, 1)),
        Peer("FlashInfer decode", partial(_flashinfer_decode, q, replayed, scale)),
    ]


def chunk_peers(q: Tensor, pages: Pages, scale: float) -> list[Peer]:
    """`q` [num_tokens, num_heads, head_dim], the last tokens of one sequence."""
    return [
        Peer("SDPA on a copy", partial(_sdpa_chunk, q, pages, scale)),
        Peer("torch varlen, paged", partial(_varlen, q, [pages], scale, len(q))),
        Peer("FlashInfer prefill", partial(_flashinfer_chunk, q, pages, scale)),
    ]


def _sdpa_decode(q: Tensor, replayed: Sequence[Pages], scale: float) -> Calls:
    num_bytes = replayed[0].copy_bytes()
    if 2 * num_bytes > COPY_BYTES:
        raise MemoryError("the copy would be too large")
    copies = [pages.gather() for pages in replayed[: COPY_BYTES // num_bytes]]
    return [partial(scaled_dot_product_attention, q[:, :, None], k, v, scale=scale, enable_gqa=True) for k, v in copies]


def _sdpa_chunk(q: Tensor, pages: Pages, scale: float) -> Calls:
    k, v = pages.gather()
    if pages.lengths[0] != len(q):
        raise ValueError("its causal mask is not for chunks of a longer context")
    query = q.transpose(0, 1)[None]
    return [partial(scaled_dot_product_attention, query, k, v, scale=scale, is_causal=True, enable_gqa=True)]


def _varlen(q: Tensor, replayed: Sequence[Pages], scale: float, query_len: int) -> Calls:
    from torch.nn.attention.varlen import varlen_attn

    if "block_table" not in inspect.signature(varlen_attn).parameters:
        raise NotImplementedError(f"torch {torch.__version__} has no block_table there")
    _, num_kv_heads, _, head_dim = replayed[0].k_cache.shape
    k, v = (cache.view(-1, PAGE, num_kv_heads, head_dim) for cache in (replayed[0].k_cache, replayed[0].v_cache))
    num_seqs, longest = len(replayed[0].lengths), max(replayed[0].lengths)
    starts = torch.arange(0, num_seqs * query_len + 1, query_len, dtype=torch.int32, device=q.device)
    used = torch.tensor(replayed[0].lengths, dtype=torch.int32, device=q.device)
    order = torch.randperm(len(k), device=q.device).int()
    columns, calls = -(-longest // PAGE), []
    attend: Any = varlen_attn
    for i in range(len(replayed)):
        at = torch.arange(i * num_seqs * columns, (i + 1) * num_seqs * columns, device=q.device) % len(k)
        options = {"scale": scale, "window_size": (-1, 0), "enable_gqa": True, "seqused_k": used}
        table = order[at].view(num_seqs, columns)
        calls.append(partial(attend, q, k, v, starts, None, query_len, longest, block_table=table, **options))
    return calls


def _indices(pages: Pages) -> tuple[Tensor, Tensor, Tensor]:
    """FlashInfer's block table: first entry of each sequence, blocks, tokens in each last block."""
    block_size = pages.k_cache.shape[2]
    counts = torch.tensor([-(-n // block_size) for n in pages.lengths], dtype=torch.int32)
    rows = [row[:count] for row, count in zip(pages.block_table, counts.tolist(), strict=True)]
    last = torch.tensor([(n - 1) % block_size + 1 for n in pages.lengths], dtype=torch.int32)
    starts = torch.cat([torch.zeros(1, dtype=torch.int32), counts.cumsum(0).int()])
    return starts, torch.cat(rows).int(), last


def _flashinfer_decode(q: Tensor, replayed: Sequence[Pages], scale: float) -> Calls:
    import flashinfer  # type: ignore[import-not-found, unused-ignore]

    calls = []
    for pages in replayed[:8]:  # each has a plan and a workspace of its own
        workspace = torch.empty(128 << 20, dtype=torch.uint8, device=q.device)
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
        _, num_kv_heads, block_size, head_dim = pages.k_cache.shape
        heads = (q.shape[1], num_kv_heads, head_dim, block_size)
        wrapper.plan(*_indices(pages), *heads, q_data_type=q.dtype, kv_data_type=q.dtype, sm_scale=scale)
        calls.append(partial(wrapper.run, q, (pages.k_cache, pages.v_cache)))
    return calls


def _flashinfer_chunk(q: Tensor, pages: Pages, scale: float) -> Calls:
    import flashinfer  # type: ignore[import-not-found, unused-ignore]

    workspace = torch.empty(128 << 20, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
    _, num_kv_heads, block_size, head_dim = pages.k_cache.shape
    query_start = torch.tensor([0, len(q)], dtype=torch.int32)
    heads = (q.shape[1], num_kv_heads, head_dim, block_size)
    wrapper.plan(query_start, *_indices(pages), *heads, causal=True, sm_scale=scale, q_data_type=q.dtype)
    return [partial(wrapper.run, q, (pages.k_cache, pages.v_cache))]
