"""Rows of the embedding table on the GPU."""

from typing import Final

import torch
import triton
from torch import Tensor

from albireo.gpu_worker.cuda.kernels.embedding import embedding_kernel

TILE: Final = 1024


def look_up_embedding(table: Tensor, tokens: Tensor, first_token: int = 0, out: Tensor | None = None) -> Tensor:
    """tokens int32 or int64 `[n]`, `table` `[vocab.size, hidden_size]`, contiguous -> `[n, hidden_size]` of its dtype.

    The table's first row is token `first_token`'s. Tokens that are not in it, among them all below 0, get zeros.
    """
    rows, width = table.shape
    if out is None:
        out = torch.empty(tokens.shape[0], width, dtype=table.dtype, device=table.device)
    if tokens.shape[0]:
        grid = (tokens.shape[0], triton.cdiv(width, TILE))
        embedding_kernel[grid](table, tokens, out, first_token, rows, WIDTH=width, BLOCK=TILE)
    return out
