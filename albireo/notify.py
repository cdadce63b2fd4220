"""What systemd is told of the service: sd_notify(3), a datagram of `KEY=value` lines per message."""

import logging
import socket
import time
from collections.abc import Callable

from albireo.config import take_notify_environment

log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 1.0
"""systemd reads at once, except while it reloads itself; a message that it does not take in this time is given up."""


class Notifier:
    """The supervisor's line to systemd; without NOTIFY_SOCKET every method does nothing.

    Made once, before any child: it takes the variables out of the environment, so that no child can speak for the
    service. No method raises; the first message that fails is logged. Used by the supervisor's main thread alone.
    """

    def __init__(self, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        environment = take_notify_environment()
        self._monotonic_ns = monotonic_ns
        self._address = environment.socket_path
        self._socket: socket.socket | None = None
        self._has_failed = False
        self._status = ""
        self._fed_ns: int | None = None
        self._extended_ns = 0
        """Until when the last extension lasts."""
        self.watchdog_interval_s: float | None = None
        """Half of WatchdogSec=: how often `watchdog` must be called at least. None: there is no watchdog."""
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(SEND_TIMEOUT_S)
            if environment.watchdog_usec is not None:
                self.watchdog_interval_s = environment.watchdog_usec / 2e6

    def ready(self, status: str) -> None:
        """The service is up."""
        self._send("READY=1", self._status_line(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`; the same as before is not sent again."""
        if text != self._status:
            self._send(self._status_line(text))

    def reloading(self) -> None:
        """The configuration is being loaded again, until `reloaded`."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={self._monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        """The service goes on, with its new configuration or, where that is not one, with the old."""
        self._send("READY=1")

    def stopping(self, status: str) -> None:
        """The service ends, of itself or because it was asked to."""
        self._send("STOPPING=1", self._status_line(status))

    def extend_timeout(self, seconds: float) -> None:
        """Starting or stopping may take so many seconds from now. It counts only if it is said before the timeout
        that is in force ends, and must then be said again before the seconds are over. May be called at every sign of
        progress: a message goes out when it wins a quarter of the seconds."""
        now_ns, length_ns = self._monotonic_ns(), int(seconds * 1e9)
        if now_ns + length_ns - self._extended_ns >= length_ns / 4:
            self._extended_ns = now_ns + length_ns
            self._send(f"EXTEND_TIMEOUT_USEC={length_ns // 1000}")

    def watchdog(self) -> None:
        """The service makes progress. May be called at every turn: a message goes out every quarter of WatchdogSec=."""
        if self.watchdog_interval_s is None:
            return
        now_ns = self._monotonic_ns()
        if self._fed_ns is None or now_ns - self._fed_ns >= self.watchdog_interval_s * 1e9 / 2:
            self._fed_ns = now_ns
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Nothing is sent afterwards."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _status_line(self, text: str) -> str:
        self._status = text
        return "STATUS=" + " ".join(text.splitlines())  # a line of its own would be another assignment

    def _send(self, *lines: str) -> None:
        if self._socket is None or self._address is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(errors="replace"), _address(self._address))
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                log.warning("cannot notify systemd at %s: %s", self._address, error.strerror or error)


def _address(path: str) -> bytes:
    """Of a Unix socket; `@name` is in the abstract namespace."""
    name = path.encode(errors="surrogateescape")
    return b"\0" + name[1:] if name.startswith(b"@") else name
