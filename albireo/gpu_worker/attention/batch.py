"""What attention needs to know of a step, the same for every layer: which query tokens belong to which sequence,
where their keys and values go, and where those of earlier tokens lie."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """A step's sequences. Decode rows (one query token each) come first, then prompt chunks.

    All tensors lie on the model's device. Within a layer all keys and values of the step are written before any
    query reads: a sequence may read blocks that another sequence of the same step fills.
    """

    block_table: torch.Tensor
    """int32 [num_slots, max_blocks_per_seq]: the engine-wide table of which `slots` picks rows."""
    slots: torch.Tensor
    """int32 [num_seqs]: row of `block_table` of each sequence."""
    query_start: torch.Tensor
    """int32 [num_seqs + 1]: sequence i has query tokens [query_start[i], query_start[i + 1])."""
    seq_lens: torch.Tensor
    """int32 [num_seqs]: tokens of the sequence in the KV cache once this step's are written. The last query token
    of sequence i has position seq_lens[i] - 1. A dead row (ended on the device, still planned) has seq_len 0:
    its output is zero."""
    slot_mapping: torch.Tensor
    """int64 [num_tokens]: block * block_size + offset where each query token's key and value go; -1 writes nothing."""
    num_decodes: int
    """The first `num_decodes` sequences have exactly one query token."""
    max_query_len: int
    max_seq_len: int
