"""Keeps what penalties and bad words know of a sequence up to date, one sampled token per row."""

from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import carray, njit

from albireo.gpu_worker.kernels.launch import CALLED, Kernel
from albireo.gpu_worker.kernels.simd import offset, pointer

_SEARCHED_AT_ONCE: Final = 64
"""Ids compared without a branch: a search that may stop at every one is not vectorised."""

ARGUMENTS: Final = np.dtype(
    [
        (name, "<i8")
        for name in (
            "num_rows",
            "slots",  # int32 [num_rows]
            "tokens",  # int32 [num_rows]
            "has_penalties",  # this and all below: `SamplingTable`'s columns
            "bad_words_size",
            "seen_ids",
            "seen_counts",
            "seen_width",
            "num_seen",
            "recent",
            "recent_width",
            "num_recent",
        )
    ]
)


def history_arguments(
    has_penalties: npt.NDArray[np.bool_],
    bad_words_size: npt.NDArray[np.int32],
    seen_ids: npt.NDArray[np.int32],
    seen_counts: npt.NDArray[np.int32],
    num_seen: npt.NDArray[np.int32],
    recent: npt.NDArray[np.int32],
    num_recent: npt.NDArray[np.int32],
) -> tuple[int, ...]:
    """Those of `ARGUMENTS` that stay as long as the table lives."""
    return (
        has_penalties.ctypes.data, bad_words_size.ctypes.data, seen_ids.ctypes.data, seen_counts.ctypes.data,
        seen_ids.shape[1], num_seen.ctypes.data, recent.ctypes.data, recent.shape[1], num_recent.ctypes.data,
    )  # fmt: skip


@njit(**CALLED)
def _find(ids: Any, count: Any, token: Any) -> Any:
    """The index of `token` among the first `count` ids, or `count`. They are in no order, and few."""
    for start in range(0, count, _SEARCHED_AT_ONCE):
        end = min(start + _SEARCHED_AT_ONCE, count)
        hits = np.int32(0)
        for i in range(start, end):
            hits += np.int32(ids[i] == token)
        if hits:
            for i in range(start, end):
                if ids[i] == token:
                    return i
    return count


@njit(**CALLED)
def _count(ids: Any, counts: Any, width: Any, num_seen: Any, slot: Any, token: Any) -> None:
    at = _find(ids, np.int64(num_seen[slot]), token)
    if at < num_seen[slot]:
        counts[at] += np.int32(2)
    elif at < width:
        ids[at], counts[at] = token, np.int32(2)
        num_seen[slot] += np.int32(1)


@njit(**CALLED)
def _remember(recent: Any, num_recent: Any, slot: Any, token: Any) -> None:
    """Appends to the newest tokens; the oldest makes room."""
    if num_recent[slot] == recent.size:
        for i in range(recent.size - 1):
            recent[i] = recent[i + 1]
        num_recent[slot] -= np.int32(1)
    recent[num_recent[slot]] = token
    num_recent[slot] += np.int32(1)


@cache
def observe_kernel() -> Kernel:
    """Enters `tokens` in the histories of those `slots` that keep one. On one thread."""

    def observe(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        slots, tokens = pointer(a.slots, np.int32), pointer(a.tokens, np.int32)
        has_penalties, bad_words_size = pointer(a.has_penalties, np.uint8), pointer(a.bad_words_size, np.int32)
        num_seen, num_recent = pointer(a.num_seen, np.int32), pointer(a.num_recent, np.int32)
        for r in range(a.num_rows):
            slot, token = np.int64(slots[r]), tokens[r]
            if has_penalties[slot]:
                ids = offset(pointer(a.seen_ids, np.int32), slot * a.seen_width)
                counts = offset(pointer(a.seen_counts, np.int32), slot * a.seen_width)
                _count(ids, counts, a.seen_width, num_seen, slot, token)
            if bad_words_size[slot]:
                recent = carray(offset(pointer(a.recent, np.int32), slot * a.recent_width), (a.recent_width,))
                _remember(recent, num_recent, slot, token)

    return Kernel(observe, ARGUMENTS)
