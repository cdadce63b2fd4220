"""Rows of the embedding table."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["first_token", "num_rows"])
def embedding_kernel(table, tokens, out, first_token, num_rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """out[i] = table[tokens[i] - first_token], zeros if that is no row of the table; grid [tokens, tiles of BLOCK].

    `table` [num_rows, WIDTH] and `out` [n, WIDTH] contiguous, `tokens` int32 or int64; -1 is never a token.
    """
    i = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    token = tl.load(tokens + i).to(tl.int64)
    row = token - first_token
    is_here = (token >= 0) & (row >= 0) & (row < num_rows)
    value = tl.load(table + row * WIDTH + columns, mask=inside & is_here, other=0.0)
    tl.store(out + i * WIDTH + columns, value, mask=inside)
