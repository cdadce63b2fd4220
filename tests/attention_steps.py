"""Steps of made-up sequences for attention, of which only what they own may be read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.interface import Attention

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2}
"""Outputs are of order 1, a few are 4: fp32 sums in another order; a rounding to bf16 of what is under 4."""
SCALE = 0.1


@dataclass(frozen=True)
class Heads:
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Step:
    """A step's inputs; `lengths` are (seq_len, query_len) and decode rows come first."""

    lengths: tuple[tuple[int, int], ...]
    q: Tensor
    k: Tensor
    v: Tensor
    k_cache: Tensor
    v_cache: Tensor
    batch: AttentionBatch

    def attend(self, attention: Attention, sliding_window: int | None = None) -> Tensor:
        out = torch.full_like(self.q, 9.0)
        attention.attend(self.q, self.k_cache, self.v_cache, self.batch, SCALE, sliding_window, out)
        return out

    def to(self, device: torch.device) -> "Step":
        """The same step on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("q", "k", "v", "k_cache", "v_cache")}
        tensors = ("block_table", "slots", "query_start", "seq_lens", "slot_mapping")
        batch = replace(self.batch, **{name: getattr(self.batch, name).to(device) for name in tensors})
        return replace(self, **moved, batch=batch)

    def only(self, i: int, tokens: slice = slice(None)) -> "Step":
        """The same step with nothing but sequence i, or but some of its query tokens."""
        seq_len, query_len = self.lengths[i]
        start, stop, _ = tokens.indices(query_len)
        first = int(self.batch.query_start[i]) + start
        length = (seq_len - (query_len - stop), stop - start)
        batch = replace(
            self.batch,
            slots=self.batch.slots[i : i + 1],
            query_start=torch.tensor([0, length[1]], dtype=torch.int32),
            seq_lens=torch.tensor([length[0]], dtype=torch.int32),
            num_decodes=int(i < self.batch.num_decodes),
            max_query_len=length[1],
            max_seq_len=length[0],
        )
        return replace(self, lengths=(length,), q=self.q[first : first + length[1]], batch=batch)


def make_step(decodes: Sequence[int], chunks: Sequence[tuple[int, int]], heads: Heads, seed: int = 0) -> Step:
    """Pages in random order; what no sequence of the step owns is NaN, and nobody may notice."""
    torch.manual_seed(seed)
    lengths = (*((seq_len, 1) for seq_len in decodes), *chunks)
    size = heads.block_size
    num_blocks = [-(-seq_len // size) for seq_len, _ in lengths]
    # nobody owns block 0, which is what a masked load of a block's number gives
    shuffled = 1 + torch.randperm(sum(num_blocks) + 1)
    block_table = torch.full((len(lengths) + 2, max(num_blocks) + 1), -1, dtype=torch.int32)
    slots = torch.randperm(len(lengths) + 2)[: len(lengths)]
    cache_shape = (len(shuffled) + 1, heads.num_kv_heads, size, heads.head_dim)
    k_cache, v_cache = (torch.full(cache_shape, torch.nan, dtype=heads.dtype) for _ in range(2))
    slot_mapping: list[int] = []
    for (seq_len, query_len), slot, blocks in zip(lengths, slots, num_blocks, strict=True):
        mine, shuffled = shuffled[:blocks], shuffled[blocks:]
        block_table[slot, :blocks] = mine.int()
        positions = (mine[:, None] * size + torch.arange(size)).flatten()[:seq_len]
        for cache in (k_cache, v_cache):
            rows = torch.randn(seq_len, heads.num_kv_heads, heads.head_dim).to(heads.dtype)
            cache[positions // size, :, positions % size] = rows
        slot_mapping += positions[seq_len - query_len :].tolist() if seq_len else [-1] * query_len
    num_tokens = sum(query_len for _, query_len in lengths)
    num_q, num_kv = heads.num_heads, heads.num_kv_heads
    qkv = torch.randn(num_tokens, num_q + 2 * num_kv, heads.head_dim).to(heads.dtype)
    q, k, v = torch.split(qkv, [num_q, num_kv, num_kv], dim=1)
    batch = AttentionBatch(
        block_table=block_table,
        slots=slots.int(),
        query_start=torch.tensor([0, *(n for _, n in lengths)]).cumsum(0).int(),
        seq_lens=torch.tensor([n for n, _ in lengths], dtype=torch.int32),
        slot_mapping=torch.tensor(slot_mapping, dtype=torch.int64),
        num_decodes=len(decodes),
        max_query_len=max(n for _, n in lengths),
        max_seq_len=max(n for n, _ in lengths),
    )
    return Step(lengths, q, k, v, k_cache, v_cache, batch)


def assert_close(got: Tensor, expected: Tensor) -> None:
    """Within TOLERANCE, or where a step of bfloat16 is more than that (from 4 on), within one."""
    assert got.dtype is expected.dtype and got.shape == expected.shape
    allowed = torch.full_like(expected, TOLERANCE[got.dtype], dtype=torch.float32)
    if got.dtype is torch.bfloat16:
        _, exponent = torch.frexp(expected.float())
        allowed = torch.maximum(allowed, torch.exp2(exponent.float() - 8))
    off = (got.float() - expected.float()).abs()
    assert bool((off <= allowed).all()), (
        f"{int((off > allowed).sum())} of {off.numel()} are off, by {off.max()} at most"
    )
