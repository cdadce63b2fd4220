"""The GPU's clock, in nanoseconds, noted where a step's parts begin."""

import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer


@triton.jit
def read_clock(out):
    """out int64 [1]"""
    tl.store(out, globaltimer())


@triton.jit
def stamp(stamps, step, WHICH: tl.constexpr, STRIDE: tl.constexpr, NUM_SLOTS: tl.constexpr, IS_TIMED: tl.constexpr):
    """stamps int64 [NUM_SLOTS, 4], rows STRIDE apart: the time now, in column WHICH (begin, sampling, end; begin of its
    block copies) of the step that is under way; `step` int64 [1] is the number of the one before."""
    if IS_TIMED:
        slot = (tl.load(step) + 1) % NUM_SLOTS
        tl.store(stamps + slot * STRIDE + WHICH, globaltimer())
