"""How late the event loop handles what is ready: a kernel timer on the loop, compared with the time it was due.

The lag holds all that delays the handling of a chunk: handlers that run before it and the wait for a core.
`call_later` cannot show it, since asyncio's and uvloop's own timers round to a millisecond.
"""

import asyncio
import ctypes
import os
import sys
import time
from types import TracebackType

_CLOCK_MONOTONIC = 1
"""The clock of time.perf_counter_ns() on Linux."""
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_ABSOLUTE = 1


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("first", _TimeSpec))


def _arm(due_ns: int, interval_ns: int) -> int:
    """A timerfd (timerfd_create(2)) that becomes readable at `due_ns` and every `interval_ns` after it.

    By ctypes, since os.timerfd_create came with Python 3.13. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create failed")
    times = _TimerSpec(_TimeSpec(*divmod(interval_ns, 10**9)), _TimeSpec(*divmod(due_ns, 10**9)))
    if libc.timerfd_settime(fd, _ABSOLUTE, ctypes.byref(times), None) < 0:
        os.close(fd)
        raise OSError(ctypes.get_errno(), "timerfd_settime failed")
    return int(fd)


class LoopLagSampler:
    """A context on a running loop; `lags_ns` holds one sample per timer expiry that was handled.

    When the loop was away for several expiries, each of them counts, with its own lag: they stand for chunks that
    could have come then.
    """

    def __init__(self, interval_ns: int = 10_000_000) -> None:
        self.lags_ns: list[int] = []
        self._interval_ns = interval_ns
        self._due_ns = 0
        self._fd = -1

    def __enter__(self) -> "LoopLagSampler":
        self._due_ns = time.perf_counter_ns() + self._interval_ns
        self._fd = _arm(self._due_ns, self._interval_ns)
        asyncio.get_running_loop().add_reader(self._fd, self._on_expiry)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _on_expiry(self) -> None:
        expiries = int.from_bytes(os.read(self._fd, 8), sys.byteorder)
        now_ns = time.perf_counter_ns()
        for _ in range(expiries):
            self.lags_ns.append(now_ns - self._due_ns)
            self._due_ns += self._interval_ns
