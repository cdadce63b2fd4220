"""The easy attention: gather each sequence's pages into a copy and use plain torch ops. Slow, runs on any device.

The tests hold the fast implementations to it, so it shares no code with them.
"""

import torch
from torch import Tensor

from albireo.gpu_worker.attention.batch import AttentionBatch


class OracleAttention:
    """`Attention` by gathering; all arithmetic in fp32, whatever the cache's dtype."""

    def write_kv(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch) -> None:
        block_size = k_cache.shape[2]
        token = torch.nonzero(batch.slot_mapping >= 0).squeeze(1)
        slot = batch.slot_mapping[token]
        block, offset = slot // block_size, slot % block_size
        k_cache[block, :, offset] = k[token]
        v_cache[block, :, offset] = v[token]

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
        starts = batch.query_start.tolist()
        lengths = batch.seq_lens.tolist()
        slots = batch.slots.tolist()
        for i, (slot, seq_len) in enumerate(zip(slots, lengths, strict=True)):
            rows = slice(starts[i], starts[i + 1])
            if seq_len == 0:
                out[rows] = 0
                continue
            k = gather_pages(k_cache, batch.block_table[slot], seq_len)
            v = gather_pages(v_cache, batch.block_table[slot], seq_len)
            out[rows] = dense_attention(q[rows], k, v, scale, sliding_window).to(out.dtype)


def gather_pages(cache: Tensor, block_table_row: Tensor, seq_len: int) -> Tensor:
    """A sequence's `[num_kv_heads, seq_len, head_dim]` as an fp32 copy."""
    _, num_kv_heads, block_size, head_dim = cache.shape
    blocks = block_table_row[: -(-seq_len // block_size)].long()
    pages = cache[blocks].transpose(0, 1).reshape(num_kv_heads, -1, head_dim)
    return pages[:, :seq_len].float()


def dense_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, sliding_window: int | None) -> Tensor:
    """`q` [n, num_heads, head_dim] over `k`, `v` [num_kv_heads, seq_len, head_dim]: fp32 [n, num_heads, head_dim]."""
    n_tokens, num_heads, _ = q.shape
    num_kv_heads, seq_len, _ = k.shape
    group = num_heads // num_kv_heads
    k = k.repeat_interleave(group, dim=0)
    v = v.repeat_interleave(group, dim=0)
    scores = q.float().transpose(0, 1) @ k.transpose(1, 2) * scale
    key = torch.arange(seq_len, device=q.device)
    query = torch.arange(seq_len - n_tokens, seq_len, device=q.device)[:, None]
    visible = key <= query
    if sliding_window is not None:
        visible &= key > query - sliding_window
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return (weights @ v).transpose(0, 1)
