"""The compiled half of `shm`: each operation as a loop over pieces of a buffer's size."""

from functools import cache
from typing import Any

import numpy as np
from numba import carray

from albireo.gpu_worker.collectives.atomics import copy_bytes
from albireo.gpu_worker.collectives.barrier import (
    ARGUMENTS,
    OFFSET,
    PIECE,
    STAGE,
    announce,
    arrive,
    buffer,
    finish_piece,
    is_together,
    wait,
)
from albireo.gpu_worker.collectives.sums import BLOCK, Element, add_up
from albireo.gpu_worker.kernels.launch import Kernel
from albireo.gpu_worker.kernels.simd import pointer


@cache
def move_kernel() -> Kernel:
    """All-gather (`variant` 1) and all-to-all (`variant` = size): out[r] is rank r's part for this rank.

    `source` is [variant, length] bytes, `out` [size, length].
    """

    def move(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        s = pointer(a.state, np.int64)
        parts = a.variant
        room = a.buffer_bytes // parts // 64 * 64
        while True:
            at, length = s[OFFSET], min(room, a.length - s[OFFSET])
            own = a.rank if parts > 1 else 0
            if s[STAGE] == 0:
                own_buffer = buffer(a, a.rank, s[PIECE])
                for part in range(parts):
                    if parts == 1 or part != a.rank:
                        copy_bytes(own_buffer + part * room, a.source + part * a.length + at, length)
                announce(a)
            if not wait(a):
                return
            if not is_together(a):
                return
            for other in range(a.size):
                source = buffer(a, other, s[PIECE]) + own * room
                if other == a.rank:
                    source = a.source + own * a.length + at
                copy_bytes(a.out + other * a.length + at, source, length)
            if finish_piece(a, length):
                return

    return Kernel(move, ARGUMENTS)


@cache
def sum_kernel(element: Element) -> Kernel:
    """All-reduce: out = source of rank 0 + rank 1 + ... + residual in fp32, rounded once; `out` may be `source`.

    `element`: np.uint16 for bf16, np.float32. Without `variant` every rank adds up everything, after one barrier.
    With it each rank adds up its share of the piece, in place in its own buffer, where nobody else reads that share
    before a second barrier, after which all copy all shares.
    """
    item = 2 if element is np.uint16 else 4

    def sum_ranks(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        s = pointer(a.state, np.int64)
        room = a.buffer_bytes // item
        stride = 2 * a.buffer_bytes
        while True:
            at, length = s[OFFSET], min(room, a.length - s[OFFSET])
            first = buffer(a, 0, s[PIECE])
            own_buffer = buffer(a, a.rank, s[PIECE])
            residual = a.residual + at * item if a.residual != 0 else 0
            out = a.out + at * item
            share = (length + a.size * BLOCK - 1) // (a.size * BLOCK) * BLOCK if a.variant else length
            if s[STAGE] == 0:
                copy_bytes(own_buffer, a.source + at * item, length * item)
                announce(a)
            if not wait(a):
                return
            if not is_together(a):
                return
            if a.variant == 0:
                add_up(element, first, stride, a.size, residual, out, length)
            else:
                if s[STAGE] == 1:
                    start = min(length, a.rank * share)
                    rest = residual + start * item if residual != 0 else 0
                    mine = min(length, start + share) - start
                    add_up(element, first + start * item, stride, a.size, rest, own_buffer + start * item, mine)
                    s[STAGE] = 2
                    arrive(a)
                if not wait(a):
                    return
                for other in range(a.size):
                    start = min(length, other * share)
                    bytes_ = (min(length, start + share) - start) * item
                    copy_bytes(out + start * item, buffer(a, other, s[PIECE]) + start * item, bytes_)
            if finish_piece(a, length):
                return

    return Kernel(sum_ranks, ARGUMENTS)
