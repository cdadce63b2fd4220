"""The last kernel of a step: which tokens end their requests, the request state of the next step, and the results."""

import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer

GENERATION = tl.constexpr(1)
NUM_EOS_IDS = tl.constexpr(8)
NUM_STOP_IDS = tl.constexpr(9)
STOP_IDS = tl.constexpr(10)
"""int32 words of ADMISSION; tests hold them to `shm.layout`."""
MAX_STOP_IDS = tl.constexpr(16)
ADMISSION_WORDS = tl.constexpr(48)
ROW_WORDS = tl.constexpr(4)
EOS = tl.constexpr(1)
STOP_TOKEN = tl.constexpr(2)


@triton.jit(do_not_specialize=["num_rows"])
def finish_step(
    num_rows,
    sample_slots,
    sample_positions,
    tokens,
    admissions,
    alive,
    last_token,
    num_tokens,
    results,
    step,
    stamps,
    SLOT_WORDS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    STAMP_STRIDE: tl.constexpr,
    ROWS_AT: tl.constexpr,
    LANES: tl.constexpr,
    IS_TIMED: tl.constexpr,
):
    """Grid (1,); LANES >= num_rows. Rows with slot -1 are padding and leave nothing.

    sample_slots, sample_positions, tokens  int32 [num_rows]; token -1 where the row was dead,
            WAITED where it samples in a later step: its state stays
    results  int32 [NUM_SLOTS, SLOT_WORDS]: the step's TOKEN_ROW [num_rows] from word ROWS_AT of its slot on
    step  int64 [1]: counted up at the end
    """
    before = tl.load(step)
    index = (before + 1) % NUM_SLOTS
    if IS_TIMED:
        tl.store(stamps + index * STAMP_STRIDE + 2, globaltimer())
    row = tl.arange(0, LANES)
    inside = row < num_rows
    slot = tl.load(sample_slots + row, mask=inside, other=-1)
    inside = inside & (slot >= 0)
    at = tl.maximum(slot, 0).to(tl.int64)
    token = tl.load(tokens + row, mask=inside, other=-1)
    record = admissions + at * ADMISSION_WORDS
    num_eos = tl.load(record + NUM_EOS_IDS, mask=inside, other=0)
    num_stop = num_eos + tl.load(record + NUM_STOP_IDS, mask=inside, other=0)
    number = tl.arange(0, MAX_STOP_IDS)
    ids = tl.load(record[:, None] + STOP_IDS + number[None, :], mask=inside[:, None], other=-1)
    hit = (ids == token[:, None]) & (token[:, None] >= 0)
    # the first hit decides: an id that is both counts as EOS
    first = tl.min(tl.where(hit, number[None, :], MAX_STOP_IDS), axis=1)
    finish = tl.where(first < num_eos, EOS, tl.where(first < num_stop, STOP_TOKEN, 0))

    live = inside & (token >= 0)
    length = tl.load(sample_positions + row, mask=live, other=0) + 1
    tl.store(last_token + at, token, mask=live)
    tl.store(num_tokens + at, length, mask=live)
    tl.store(alive + at, 0, mask=live & (finish != 0))

    out = results + index * SLOT_WORDS + ROWS_AT + row * ROW_WORDS
    tl.store(out, slot, mask=inside)
    tl.store(out + 1, tl.load(record + GENERATION, mask=inside, other=0), mask=inside)
    tl.store(out + 2, token, mask=inside)
    tl.store(out + 3, finish, mask=inside)
    tl.debug_barrier()  # every warp has read the count
    tl.store(step, before + 1)
