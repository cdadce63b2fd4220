"""How every child of the supervisor starts and how it ends with it. A leaf.

A child's stdin is a pipe from the supervisor: its first line is the child's config, and its end of file means that
the supervisor is gone, however it died. The lifeline thread waits for that, removes the sockets' directory (nobody
else is left to do it) and ends the process at once: whatever the main thread is doing, nothing may outlive the
supervisor.
"""

import gc
import os
import shutil
import signal
import sys
import threading
from typing import TypeVar

import msgspec
import setproctitle
import zmq

from albireo import logs, sockets
from albireo.config import ChildConfig
from albireo.messages import Fatal, FromSupervisor, ToSupervisor, child_decoder, encode

C = TypeVar("C", bound=ChildConfig)


class Control:
    """The child's end of the control socket. Used by the child's main thread alone."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", config: ChildConfig) -> None:
        self.socket = sockets.open_socket(context, zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, config.name.encode())
        self.socket.connect(sockets.control_address(config.run_dir))
        self._decoder = child_decoder()

    def send(self, message: ToSupervisor) -> None:
        self.socket.send(encode(message))

    def poll(self) -> FromSupervisor | None:
        """The next message from the supervisor, or None."""
        try:
            return self._decoder.decode(self.socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            return None

    def wait(self, timeout_ms: int) -> FromSupervisor | None:
        """The next message from the supervisor, or None after the timeout."""
        return self.poll() if self.socket.poll(timeout_ms) else None

    def fatal(self, message: str, exit_code: int = 1) -> None:
        """Says why this process is about to exit, and makes sure that it is heard."""
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.send(Fatal(message.splitlines()[0] if message else "unknown error", exit_code))


def start(config_type: type[C]) -> C:
    """Reads this process's config from stdin, names the process and ties its life to the supervisor's.

    Raises msgspec.ValidationError on a config with an unknown or missing key. SIGINT is the supervisor's business;
    SIGTERM keeps its default until the process changes it.
    """
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=config_type)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setproctitle.setproctitle(f"albireo-{config.name}")
    logs.configure(config.name, config.log_level)
    threading.Thread(target=_lifeline, args=(config.run_dir,), name="lifeline", daemon=True).start()
    return config


def settle() -> None:
    """Once a process is ready: what exists by now lives as long as it does, and the garbage collector need not look
    at it again. A full collection would go through all of it, tens of milliseconds in the middle of a step."""
    gc.collect()
    gc.freeze()


def _lifeline(run_dir: str) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    shutil.rmtree(run_dir, ignore_errors=True)
    os._exit(1)
