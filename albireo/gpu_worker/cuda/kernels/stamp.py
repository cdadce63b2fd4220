"""The GPU's clock, in nanoseconds, noted where a step's parts begin."""

import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer

STAMPS_PER_STEP = tl.constexpr(4)
"""Of a ring slot: begin, sampling, end; one unused."""


@triton.jit
def read_clock(out):
    """out int64 [1]"""
    tl.store(out, globaltimer())


@triton.jit
def stamp(stamps, step, WHICH: tl.constexpr, NUM_SLOTS: tl.constexpr, IS_TIMED: tl.constexpr):
    """stamps int64 [NUM_SLOTS, STAMPS_PER_STEP]: the time now, of the step that is under way; `step` int64 [1] is the
    number of the one before."""
    if IS_TIMED:
        slot = (tl.load(step) + 1) % NUM_SLOTS
        tl.store(stamps + slot * STAMPS_PER_STEP + WHICH, globaltimer())
