"""What the model asks of attention over the paged KV cache; one implementation per device and a test oracle."""

from typing import Protocol

from torch import Tensor

from albireo.gpu_worker.attention.batch import AttentionBatch


class Attention(Protocol):
    """Writes a step's keys and values into one layer's pages, then lets its queries read them.

    `k_cache` and `v_cache` are one layer's pages `[num_blocks, num_kv_heads, block_size, head_dim]`, bf16 or fp32,
    contiguous. Called by the worker's model thread, layer by layer: `write_kv` for all tokens of the step, then
    `attend`, since a sequence may read blocks that another sequence of the same step fills.
    """

    def write_kv(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch) -> None:
        """Store `k` and `v` `[n_tokens, num_kv_heads, head_dim]` where `batch.slot_mapping` says; -1 stores nothing.

        Their last dimension is contiguous; they may be strided views of a fused QKV projection's output.
        """

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
        """Causal attention of `q` `[n_tokens, num_heads, head_dim]` into `out` of the same shape and dtype.

        A query at position p sees positions 0..p, or p - sliding_window + 1..p. Query head h reads key/value head
        h // (num_heads // num_kv_heads). Rows of a sequence with seq_len 0 become zero. `q` and `out` have
        contiguous last dimensions and may be strided views; sums are kept in fp32.
        """
