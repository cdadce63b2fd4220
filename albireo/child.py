"""How every child of the supervisor starts and how it ends with it. A leaf.

A child's stdin is a pipe from the supervisor: its first line is the child's config, and its end of file means that
the supervisor is gone, however it died. The lifeline thread waits for that, removes the sockets' directory (nobody
else is left to do it) and ends the process at once: whatever the main thread is doing, nothing may outlive the
supervisor. Until it waits, the kernel ends the process (`child_main.py`); workers for good, since what they do can keep
threads waiting for long. They leave the directory to the others.
"""

import gc
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import setproctitle
import zmq

from albireo import child_main, logs, run_directory, sockets
from albireo.config import ChildConfig, WorkerConfig
from albireo.messages import Fatal, FromSupervisor, Reload, ToSupervisor, child_decoder, encode

log = logging.getLogger(__name__)

C = TypeVar("C", bound=ChildConfig)


class Control:
    """The child's end of the control socket. Used by the child's main thread alone."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", config: ChildConfig) -> None:
        self.socket = sockets.open_socket(context, zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, config.identity.encode())
        self.socket.connect(sockets.control_address(config.run_dir))
        self._decoder = child_decoder()

    def send(self, message: ToSupervisor) -> None:
        self.socket.send(encode(message))

    def poll(self) -> FromSupervisor | None:
        """The next message from the supervisor, or None. What every process does about one is done here."""
        try:
            message = self._decoder.decode(self.socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            return None
        if isinstance(message, Reload):
            logs.set_level(message.log_level)
        return message

    def wait(self, timeout_ms: int) -> FromSupervisor | None:
        """The next message from the supervisor, or None after the timeout."""
        return self.poll() if self.socket.poll(timeout_ms) else None

    def fatal(self, message: str, exit_code: int = 1) -> None:
        """Says why this process is about to exit, and makes sure that it is heard."""
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.send(Fatal(message.splitlines()[0] if message else "unknown error", exit_code))


def wait_as_spare(modules: Sequence[str]) -> None:
    """Imports what a spare is to have ready, when nobody else needs the core; `start` then waits for the config. Does
    nothing without modules: a process that is needed at once."""
    if not modules:
        return
    setproctitle.setproctitle("albireo-spare")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    before = os.sched_getscheduler(0)
    _set_policy(os.SCHED_IDLE)
    for module in modules:
        importlib.import_module(module)
    _set_policy(before)


def start(config_type: type[C]) -> C:
    """Reads this process's config from stdin, names the process and ties its life to the supervisor's.

    Raises msgspec.ValidationError on a config with an unknown or missing key. SIGINT and SIGHUP are the supervisor's
    business; SIGTERM keeps its default until the process changes it.
    """
    line = sys.stdin.buffer.readline()
    if not line:  # a spare whose supervisor is gone
        sys.exit(0)
    config = msgspec.json.decode(line, type=config_type)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    setproctitle.setproctitle(f"albireo-{config.name}")
    logs.configure(config.name, config.log_level, config.log_format)
    threading.Thread(target=_lifeline, args=(config.run_dir,), name="lifeline", daemon=True).start()
    if not isinstance(config, WorkerConfig):
        child_main.outlive_supervisor()
    return config


def give_way() -> None:
    """This thread, and threads that it starts from now on, no longer take the core of a running thread when they wake
    up: they get an idle core, or their turn (SCHED_BATCH, sched(7)).

    For all but those that compute. The device's thread wakes the coordinator at the end of each step; where cores are
    few that one, the frontend behind it and ZeroMQ's own threads sat down on its core, and the next step began half a
    millisecond late (docs/benchmarks/host-path.md).
    """
    _set_policy(os.SCHED_BATCH)


@contextmanager
def giving_way() -> Iterator[None]:
    """`give_way` for the threads that are started inside, while this thread itself stays as it is."""
    before = os.sched_getscheduler(0)
    _set_policy(os.SCHED_BATCH)
    try:
        yield
    finally:
        _set_policy(before)


def _set_policy(policy: int) -> None:
    try:
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except OSError as error:  # some sandboxes forbid it; everything works, a little less evenly
        log.debug("no scheduling policy %d: %s", policy, error)


def settle() -> None:
    """Once a process is ready: what exists by now lives as long as it does, and the garbage collector need not look
    at it again. A full collection would go through all of it, tens of milliseconds in the middle of a step."""
    gc.collect()
    gc.freeze()


def _lifeline(run_dir: str) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    run_directory.remove(Path(run_dir))
    os._exit(1)
