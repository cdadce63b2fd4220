"""Signals as something to poll."""

import os
import signal
from types import FrameType, TracebackType
from typing import Final, Self

TAKEN: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SignalPipe:
    """SIGINT, SIGTERM and SIGHUP as bytes on a descriptor that the supervisor polls."""

    def __enter__(self) -> Self:
        self.fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old = {number: signal.signal(number, self._ignore) for number in TAKEN}
        signal.set_wakeup_fd(self._write_fd)
        self._has_terminal = self._old[signal.SIGHUP] != signal.SIG_IGN and _is_on_terminal()  # nohup is neither
        return self

    @staticmethod
    def _ignore(number: int, frame: FrameType | None) -> None:
        """The wake-up descriptor carries the news."""

    def take(self) -> list[int]:
        """Numbers of the signals that arrived. A terminal that closes says SIGHUP too, perhaps several times, and means
        the end: that is SIGTERM here, once."""
        try:
            numbers = list(os.read(self.fd, 64))
        except BlockingIOError:
            return []
        if signal.SIGHUP in numbers and self._has_terminal and not _is_on_terminal():
            self._has_terminal = False
            numbers = [signal.SIGTERM, *(number for number in numbers if number != signal.SIGHUP)]
        return numbers

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.close(self.fd)
        os.close(self._write_fd)


def _is_on_terminal() -> bool:
    """Whether a terminal controls this process's session."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
