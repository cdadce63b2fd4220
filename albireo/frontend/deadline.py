"""A deadline for Python code on a worker thread.

Rendering a template is Python code with no natural place to look at the clock. On the event loop it could hold up
every stream, so it runs on a thread; the loop's timer then raises `DeadlineExceeded` in that thread, which CPython
offers as PyThreadState_SetAsyncExc. A single long call into C would be waited for.
"""

import asyncio
import ctypes
import threading
import time
from types import TracebackType


class DeadlineExceeded(BaseException):
    """Raised in the middle of the guarded code. No Exception, so that the code does not swallow it."""


class Deadline:
    """Bounds the time that a worker thread spends inside `with deadline:`. For one use.

    Made and cancelled on the event loop. The time spent waiting for a thread does not count."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._thread_id: int | None = None
        """The thread inside the guarded code; guarded by the lock, like `_started_s` and `_raised`."""
        self._started_s = 0.0
        self._raised = False
        self._timer = loop.call_later(timeout_s, self._look)

    def cancel(self) -> None:
        """On the event loop, when the work is done."""
        self._timer.cancel()

    def _look(self) -> None:
        """On the event loop: raises in the thread if its time is up, or comes back when it will be."""
        with self._lock:
            now = time.monotonic()
            ends = (self._started_s if self._thread_id is not None else now) + self._timeout_s
            if ends > now:
                self._timer = self._loop.call_later(ends - now, self._look)
            else:
                self._raised = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread_id or 0), ctypes.py_object(DeadlineExceeded)
                )

    def __enter__(self) -> None:
        with self._lock:
            self._thread_id = threading.get_ident()
            self._started_s = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._thread_id = None
        # Raised, but the code ended before the interpreter delivered it: meet it here, not in whatever comes next.
        while self._raised and kind is not DeadlineExceeded:
            time.sleep(0)
