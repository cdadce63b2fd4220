"""The ways to attend to paged keys and values on the CPU that `bench_attention` compares. All of them decode one
query token per sequence over `Pages`, or a prompt chunk of one sequence, in bf16."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Run = Callable[[], object]
SCALE: Final = 0.0884


@dataclass(frozen=True)
class Pages:
    """bf16 pages `[num_blocks, num_kv_heads, block_size, head_dim]` and each sequence's blocks, all of them full."""

    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    """int32 [num_seqs, blocks per sequence]"""

    @property
    def context(self) -> int:
        return self.block_table.shape[1] * self.k_cache.shape[2]


def gather(cache: Tensor, block_table: Tensor) -> Tensor:
    """Copies of the pages as `[num_seqs, num_kv_heads, context, head_dim]`."""
    pages = cache[block_table.long()].transpose(1, 2)
    return pages.reshape(pages.shape[0], pages.shape[1], -1, pages.shape[4])


def gather_sdpa(q: Tensor, pages: Pages) -> Run:
    """Gather, then torch's attention (its flash kernel on the CPU). q is [num_seqs, num_heads, head_dim]."""

    def run() -> Tensor:
        k, v = gather(pages.k_cache, pages.block_table), gather(pages.v_cache, pages.block_table)
        return scaled_dot_product_attention(q[:, :, None], k, v, scale=SCALE, enable_gqa=True)

    return run


def _grouped_attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor) -> Tensor:
    """Gather and attention in plain operations, for a compiler to fuse. q is [num_seqs, kv heads, group, head_dim]."""
    k, v = gather(k_cache, block_table), gather(v_cache, block_table)
    scores = (q @ k.transpose(2, 3)).float() * SCALE
    return torch.softmax(scores, dim=-1).to(q.dtype) @ v


def compiled(q: Tensor, pages: Pages) -> Run:
    """torch.compile over gather and attention, for any batch and context."""
    grouped = q.view(q.shape[0], pages.k_cache.shape[1], -1, q.shape[2])
    function: Callable[..., Tensor] = torch.compile(_grouped_attention, dynamic=True)
    return lambda: function(grouped, pages.k_cache, pages.v_cache, pages.block_table)


def flash_per_run(q: Tensor, pages: Pages, blocks_per_run: int) -> Run:
    """torch's flash kernel on runs of neighbouring blocks where they lie, a page as a batch entry, joined by their
    log-sum-exps. A group's query heads are the rows of one small query."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    num_kv_heads, head_dim = pages.k_cache.shape[1], q.shape[2]
    grouped = q.view(q.shape[0], 1, num_kv_heads, -1, head_dim)
    num_runs = pages.block_table.shape[1] // blocks_per_run
    firsts = pages.block_table[:, ::blocks_per_run].tolist()

    def run() -> None:
        for i, starts in enumerate(firsts):
            query = grouped[i].expand(blocks_per_run, -1, -1, -1)
            outs, sums = [], []
            for start in starts[:num_runs]:
                blocks = slice(start, start + blocks_per_run)
                out, log_sum = flash(query, pages.k_cache[blocks], pages.v_cache[blocks], scale=SCALE)
                outs.append(out)
                sums.append(log_sum)
            weights = torch.softmax(torch.cat(sums), dim=0)
            (torch.cat(outs) * weights[..., None]).sum(0)

    return run


@njit(inline="always")  # type: ignore[untyped-decorator]
def _widen(bits: Any) -> Any:  # noqa: ANN401
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(fastmath=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _plain_head(query: Any, k: Any, v: Any, blocks: Any, scores: Any, out: Any) -> None:  # noqa: ANN401
    """One query head of one sequence over its pages k, v [num_blocks, block_size, head_dim]; scores [context]."""
    context, block_size, head_dim = scores.size, k.shape[1], k.shape[2]
    widened, acc = np.empty(head_dim, np.float32), np.zeros(head_dim, np.float32)
    for d in range(head_dim):
        widened[d] = _widen(query[d]) * np.float32(SCALE)
    for t in range(context):
        key = k[blocks[t // block_size], t % block_size]
        total = np.float32(0)
        for d in range(head_dim):
            total += widened[d] * _widen(key[d])
        scores[t] = total
    top = scores.max()
    for t in range(context):
        scores[t] = np.exp(scores[t] - top)
    for t in range(context):
        value = v[blocks[t // block_size], t % block_size]
        for d in range(head_dim):
            acc[d] += scores[t] * _widen(value[d])
    total = scores.sum()
    for d in range(head_dim):
        out[d] = np.uint16(np.float32(acc[d] / total).view(np.uint32) >> np.uint32(16))


@njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def _plain_numba(q: Any, k_cache: Any, v_cache: Any, table: Any, context: Any, out: Any) -> None:  # noqa: ANN401
    num_kv_heads = k_cache.shape[1]
    group = q.shape[1] // num_kv_heads
    for turn in prange(q.shape[0] * num_kv_heads):
        i, h = turn // num_kv_heads, turn % num_kv_heads
        scores = np.empty(context, np.float32)
        for head in range(h * group, (h + 1) * group):
            _plain_head(q[i, head], k_cache[:, h], v_cache[:, h], table[i], scores, out[i, head])


def plain_numba(q: Tensor, pages: Pages) -> Run:
    """A numba kernel as one first writes it: loops over arrays, left to the compiler, on numba's own threads."""
    bits = [x.view(torch.uint16).numpy() for x in (q, pages.k_cache, pages.v_cache)]
    table, out = pages.block_table.numpy(), torch.empty_like(q).view(torch.uint16).numpy()
    return lambda: _plain_numba(*bits, table, pages.context, out)


def chunk_gather_masked(q: Tensor, pages: Pages) -> Run:
    """Gather, then torch's attention with a mask where there is earlier context. q is [num_tokens, heads, dim]."""
    num_tokens, context = q.shape[0], pages.context
    causal = num_tokens == context
    mask = None if causal else torch.ones(num_tokens, context, dtype=torch.bool).tril(context - num_tokens)

    def run() -> Tensor:
        k, v = gather(pages.k_cache, pages.block_table), gather(pages.v_cache, pages.block_table)
        query = q.transpose(0, 1)[None]
        return scaled_dot_product_attention(query, k, v, mask, is_causal=causal, scale=SCALE, enable_gqa=True)

    return run


def chunk_gather_joined(q: Tensor, pages: Pages) -> Run:
    """Gather, then torch's flash kernel twice: on the earlier context, which needs no mask, and on the chunk itself."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    num_tokens, group = q.shape[0], q.shape[1] // pages.k_cache.shape[1]
    earlier = pages.context - num_tokens

    def run() -> None:
        k = gather(pages.k_cache, pages.block_table).repeat_interleave(group, 1)
        v = gather(pages.v_cache, pages.block_table).repeat_interleave(group, 1)
        query = q.transpose(0, 1)[None]
        out, log_sum = flash(query, k[:, :, earlier:], v[:, :, earlier:], is_causal=True, scale=SCALE)
        if earlier:
            before, log_sum_before = flash(query, k[:, :, :earlier], v[:, :, :earlier], scale=SCALE)
            share = torch.sigmoid(log_sum - log_sum_before)[..., None]
            out = out * share + before * (1 - share)

    return run
