"""The barrier between ranks and the pieces of an operation, for the kernels of `shm_kernels`.

A kernel returns when its operation is done or when it has waited for `WAIT_NS`, says which in STATE, and goes on
where it was when it is called again with the same arguments.
"""

from typing import Any, Final

import numpy as np
from numba import njit

from albireo.gpu_worker.collectives.atomics import futex_wait, futex_wake, load_word, pause, store_word
from albireo.gpu_worker.kernels.launch import CALLED, INLINED
from albireo.gpu_worker.kernels.simd import pointer
from albireo.shm import layout

WAIT_NS: Final = 100_000_000

ROUND: Final = 0
"""STATE is int64 [STATE_SIZE], in the rank's own memory. ROUND: barriers reached so far, modulo 2^32."""
PIECE: Final = 1
"""Pieces done so far; its lowest bit chooses the buffer."""
OFFSET: Final = 2
"""Where in the operation the piece begins: bytes (moves) or elements (sums)."""
STAGE: Final = 3
"""How often the rank has arrived at a barrier in this piece."""
STATUS: Final = 4
"""One of DONE, WAITING, LEFT, APART."""
OTHER: Final = 5
"""The rank that STATUS speaks of."""
TIMEOUT: Final = 6
"""and 7: a timespec of WAIT_NS."""
STATE_SIZE: Final = 8

DONE: Final = 0
WAITING: Final = 1
"""OTHER has not arrived yet."""
LEFT: Final = 2
"""OTHER has left the group and will never arrive."""
APART: Final = 3
"""OTHER is in another operation, or in one of another size."""

ARGUMENTS: Final = np.dtype(
    [
        ("state", "<i8"),
        ("group", "<i8"),  # COLLECTIVE_GROUP
        ("ranks", "<i8"),  # COLLECTIVE_RANK [size]
        ("buffers", "<i8"),  # [size, 2, buffer_bytes]
        ("buffer_bytes", "<i8"),
        ("rank", "<i8"),
        ("size", "<i8"),
        ("spin_rounds", "<i8"),  # looks at the barrier before the rank sleeps
        ("operation", "<i8"),  # kind and size, to be equal on all ranks
        ("source", "<i8"),
        ("out", "<i8"),
        ("length", "<i8"),  # of one part in bytes (moves), of the tensor in elements (sums)
        ("variant", "<i8"),  # moves: parts in `source`, 1 or size; sums: 1 to share the additions out
        ("residual", "<i8"),  # 0: none
    ]
)
"""Addresses and sizes; the tensors' sides are `source`, `out` and `residual`."""

_LINE: Final = layout.COLLECTIVE_RANK.itemsize
_ASLEEP: Final = layout.COLLECTIVE_RANK.fields["asleep"][1]  # type: ignore[index]
_CLOSED: Final = layout.COLLECTIVE_RANK.fields["closed"][1]  # type: ignore[index]
_OPERATION: Final = layout.COLLECTIVE_RANK.fields["operation"][1]  # type: ignore[index]
_WORD: Final = 0xFFFFFFFF


@njit(**INLINED)
def _straggler(a: Any, before: Any) -> Any:
    """The first rank that is still at barrier `before`, or -1."""
    for other in range(a.size):
        if load_word(a.ranks + other * _LINE) == before:
            return other
    return -1


@njit(**CALLED)
def arrive(a: Any) -> None:
    """Publish what was written so far. The last one releases the others; of ranks that arrive together each sees
    the other or is seen by it (the stores and loads have one order), so at least one finds nobody missing."""
    s = pointer(a.state, np.int64)
    before = s[ROUND]
    now = (before + 1) & _WORD
    s[ROUND] = now
    store_word(a.ranks + a.rank * _LINE, now)
    if _straggler(a, before) < 0:
        store_word(a.group, now)
        for other in range(a.size):
            if load_word(a.ranks + other * _LINE + _ASLEEP) != 0:
                futex_wake(a.group)
                return


@njit(**CALLED)
def wait(a: Any) -> Any:
    """Whether all have arrived at the barrier. Waits at most WAIT_NS and little more than that."""
    s = pointer(a.state, np.int64)
    now = s[ROUND]
    before = (now - 1) & _WORD
    s[STATUS] = DONE
    for _ in range(a.spin_rounds):
        if load_word(a.group) == now:
            return True
        pause()
    # the store comes before the load: the last to arrive sees the one or is seen by the other
    store_word(a.ranks + a.rank * _LINE + _ASLEEP, 1)
    if load_word(a.group) != now:
        futex_wait(a.group, before, a.state + 8 * TIMEOUT)
    store_word(a.ranks + a.rank * _LINE + _ASLEEP, 0)
    if load_word(a.group) == now:
        return True
    other = _straggler(a, before)
    if other < 0:  # all are there, and the last one is about to say so
        other = a.rank
    s[STATUS] = WAITING
    s[OTHER] = other
    for left in range(a.size):
        line = a.ranks + left * _LINE
        # in this order: a rank closes only after its last arrival
        if load_word(line + _CLOSED) != 0 and load_word(line) == before:
            s[STATUS] = LEFT
            s[OTHER] = left
    return False


@njit(**CALLED)
def is_together(a: Any) -> Any:
    """Whether all ranks are in the same operation. To be called between a barrier and the piece's end."""
    s = pointer(a.state, np.int64)
    for other in range(a.size):
        word = pointer(a.ranks + other * _LINE + _OPERATION, np.int64)
        if word[s[PIECE] & 1] != a.operation:
            s[STATUS] = APART
            s[OTHER] = other
            return False
    return True


@njit(**INLINED)
def buffer(a: Any, rank: Any, piece: Any) -> Any:
    return a.buffers + (2 * rank + (piece & 1)) * a.buffer_bytes


@njit(**INLINED)
def announce(a: Any) -> None:
    """Say which operation the buffer belongs to, and arrive."""
    s = pointer(a.state, np.int64)
    word = pointer(a.ranks + a.rank * _LINE + _OPERATION, np.int64)
    word[s[PIECE] & 1] = a.operation
    s[STAGE] = 1
    arrive(a)


@njit(**INLINED)
def finish_piece(a: Any, length: Any) -> Any:
    """Whether it was the operation's last."""
    s = pointer(a.state, np.int64)
    s[PIECE] += 1
    s[STAGE] = 0
    s[OFFSET] += length
    if s[OFFSET] < a.length:
        return False
    s[OFFSET] = 0
    return True
