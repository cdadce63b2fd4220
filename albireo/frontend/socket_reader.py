"""A ZeroMQ socket on an asyncio loop, without zmq.asyncio: no future and no task per message.

libzmq's file descriptor is edge-triggered: it becomes readable when the socket's state changes, and any call on the
socket may consume that. So after it has rung, everything is read; and after a send, the socket is asked whether a
message came in the meantime, since the edge may be gone.
"""

import asyncio
from collections.abc import Callable

import zmq

_MAX_FRAMES = 64
"""Frames handled before the loop gets a turn."""


class SocketReader:
    """Calls `on_frame` for each single-frame message, with the time when reading it began, and `on_failure` when that
    raises: a broken link is fatal."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        socket: "zmq.Socket[bytes]",
        on_frame: Callable[[bytes, int], None],
        on_failure: Callable[[Exception], None],
        clock_ns: Callable[[], int],
    ) -> None:
        self._loop = loop
        self._socket = socket
        self._on_frame = on_frame
        self._on_failure = on_failure
        self._clock_ns = clock_ns
        self._fd: int = socket.fileno()
        loop.add_reader(self._fd, self._drain)
        loop.call_soon(self._drain)  # what came before the edge was watched

    def close(self) -> None:
        """Stops listening. The socket stays its owner's."""
        self._loop.remove_reader(self._fd)
        self._fd = -1

    def send(self, frame: bytes) -> None:
        """Never blocks; raises zmq.Again when the socket's high-water mark is reached."""
        self._socket.send(frame, zmq.NOBLOCK)
        if self._has_input():
            self._loop.call_soon(self._drain)

    def _has_input(self) -> bool:
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def _drain(self) -> None:
        if self._fd < 0:
            return
        try:
            for _ in range(_MAX_FRAMES):
                begin_ns = self._clock_ns()
                self._on_frame(self._socket.recv(zmq.NOBLOCK), begin_ns)
                if not self._has_input():  # cheaper than one more recv and its exception
                    return
            self._loop.call_soon(self._drain)
        except zmq.Again:
            pass
        except Exception as error:
            self._on_failure(error)
