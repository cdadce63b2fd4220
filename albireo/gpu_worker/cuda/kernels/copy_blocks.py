"""Whole KV blocks from one tensor to another, either of which may be pinned host memory: the GPU reads and writes it in
place, over the bus, with as many blocks under way as it has room for."""

import triton
import triton.language as tl

LANES = tl.constexpr(1024)


@triton.jit(do_not_specialize=["copies"])  # one kernel wherever in a step's copies it begins
def copy_blocks(source, target, copies, FROM: tl.constexpr, BLOCK_WORDS: tl.constexpr):
    """Grid: (number of copies, cdiv(BLOCK_WORDS, LANES)).

    source, target  int32 [num_blocks, BLOCK_WORDS]
    copies          int32 [number of copies, 2], `layout.BLOCK_COPY`: column FROM has the source's block
    """
    pair = copies + 2 * tl.program_id(0)
    word = tl.program_id(1) * LANES + tl.arange(0, LANES)
    inside = word < BLOCK_WORDS
    from_block, to_block = tl.load(pair + FROM).to(tl.int64), tl.load(pair + 1 - FROM).to(tl.int64)
    words = tl.load(source + from_block * BLOCK_WORDS + word, mask=inside)
    tl.store(target + to_block * BLOCK_WORDS + word, words, mask=inside)
