"""Signals as something to poll."""

import os
import signal
from types import FrameType, TracebackType
from typing import Self


class SignalPipe:
    """SIGINT and SIGTERM as bytes on a descriptor that the supervisor polls."""

    def __enter__(self) -> Self:
        self.fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old = {number: signal.signal(number, self._ignore) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.set_wakeup_fd(self._write_fd)
        return self

    @staticmethod
    def _ignore(number: int, frame: FrameType | None) -> None:
        """The wake-up descriptor carries the news."""

    def take(self) -> list[int]:
        """Numbers of the signals that arrived."""
        try:
            return list(os.read(self.fd, 64))
        except BlockingIOError:
            return []

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.close(self.fd)
        os.close(self._write_fd)
