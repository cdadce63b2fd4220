"""A file descriptor that becomes readable at a time: what a loop that waits for sockets can wait for beside them."""

import ctypes
import os
from typing import Final

CLOCK_MONOTONIC: Final = 1
_TFD_TIMER_ABSTIME: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


class _Itimerspec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns")]


class StepTimer:
    """timerfd_create(2), which Python has from 3.13 on. The kernel's high-resolution timer without the slack that a
    sleep gets: readable within microseconds of the time, without a thread and without spinning."""

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._value = _Itimerspec()

    def set(self, time_ns: int) -> None:
        """Readable from `time_ns` (CLOCK_MONOTONIC) on, at once if that is past, and not before. Never, if it is 0."""
        self._value.value_s, self._value.value_ns = divmod(time_ns, 1_000_000_000)
        if _libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, ctypes.byref(self._value), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        os.close(self.fd)
