"""The masks of rows that have a grammar, from the memory of the process that writes them, or word that they wait."""

import triton
import triton.language as tl

from albireo.gpu_worker.cuda.kernels.admission import GENERATION, HAS_GRAMMAR, int_of, is_live
from albireo.messages import WAITED

WAITS = tl.constexpr(WAITED)
LANES = tl.constexpr(256)
"""Threads of a program."""


@triton.jit
def _fence():
    """What this thread reads from here on, it reads after what it has read, in the order of the whole system."""
    tl.inline_asm_elementwise("fence.acq_rel.sys; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _tag_at(place):
    """Read once, by one thread for all: did each read for itself, the tag could come between two of them, and a part of
    the mask stay behind."""
    lane = tl.arange(0, LANES)
    return tl.sum(tl.load(place + lane, mask=lane == 0, other=0, volatile=True), 0)


@triton.jit
def take_masks(
    slots, alive, positions, admissions, tags, words, asked, allowed, STRIDE: tl.constexpr, BLOCK: tl.constexpr,
    ON_GPU: tl.constexpr,
):  # fmt: skip
    """Grid: (rows,), of LANES threads. Rows without a grammar, and dead ones, leave at once.

    tags     int64 [num_slots], words int32 [num_slots, STRIDE]: `shm.grammar_masks`, in memory of the host
    asked    int32 [rows]: the row's slot, or WAITED where the mask is not that of its position
    allowed  int32 [rows, STRIDE]: the masks of the other rows that have a grammar

    What another process may write is read past all caches. The tag is read again once all words are here: a mask that
    was written over meanwhile does not count.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    outcome = slot
    if is_live(slot, alive):  # noqa: SIM102 - both sides of an `and` would be computed
        if int_of(admissions, slot, HAS_GRAMMAR) != 0:
            generation = int_of(admissions, slot, GENERATION).to(tl.int64) << 32
            wanted = generation | tl.load(positions + row).to(tl.int64)
            at = slot.to(tl.int64)
            outcome = tl.full((), WAITS, tl.int32)
            if _tag_at(tags + at) == wanted:
                if ON_GPU:
                    _fence()
                for start in tl.static_range(0, STRIDE, BLOCK):
                    lane = start + tl.arange(0, BLOCK)
                    inside = lane < STRIDE
                    mask = tl.load(words + at * STRIDE + lane, mask=inside, other=0, volatile=True)
                    tl.store(allowed + row * STRIDE + lane, mask, mask=inside)
                if ON_GPU:
                    _fence()
                tl.debug_barrier()  # every thread's words are here
                if _tag_at(tags + at) == wanted:
                    outcome = slot
    tl.store(asked + row, outcome)
