"""Keeps what penalties and bad words know of a sequence up to date, one sampled token per row."""

import triton
import triton.language as tl

from albireo.gpu_worker.cuda.kernels.admission import BAD_WORDS_SIZE, has_penalties, int_of


@triton.jit
def observe_tokens(
    slots, tokens, admissions, counts, recent, VOCAB: tl.constexpr, WORD_TOKENS: tl.constexpr
):  # fmt: skip
    """Grid: (rows,), of one warp each. Rows with token -1 have sampled none. `counts`, `recent`: `SlotExtras`."""
    row = tl.program_id(0)
    slot, token = tl.load(slots + row).to(tl.int64), tl.load(tokens + row)
    if (slot >= 0) & (token >= 0):
        if has_penalties(admissions, slot) & (token < VOCAB):
            at = counts + slot * VOCAB + token
            count = tl.load(at).to(tl.int32) & 0xFFFF
            count = tl.where(count < 0xFFFE, count + 2, count)
            tl.store(at, count.to(tl.int16))
        if int_of(admissions, slot, BAD_WORDS_SIZE) > 0:
            lane = tl.arange(0, WORD_TOKENS)
            newest = recent + slot * WORD_TOKENS
            moved = tl.load(newest + lane + 1, mask=lane < WORD_TOKENS - 1, other=0)
            moved = tl.where(lane == WORD_TOKENS - 1, token, moved)
            tl.debug_barrier()
            tl.store(newest + lane, moved)
