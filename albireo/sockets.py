"""Where the engine's ZeroMQ sockets are: ipc sockets in the supervisor's private directory. A leaf.

control       supervisor ROUTER  <-> every child DEALER     messages.ToSupervisor / FromSupervisor
coordinator   coordinator ROUTER <-> every frontend DEALER  messages.ToCoordinator / ToFrontend
grammar       coordinator ROUTER <-> grammar DEALER         messages.FromGrammar / ToGrammar
plan bell     coordinator PUB     -> every worker SUB       empty frames: look at the plan ring
token bell    coordinator PULL   <-  every worker PUSH      empty frames: look at the token rings

A doorbell is only a wake-up. Both queues of a bell hold a single frame: further rings while one is pending are
dropped, since who wakes up looks at the ring and not at the number of rings.
"""

import contextlib
from pathlib import Path

import zmq


def control_address(run_dir: str) -> str:
    return f"ipc://{run_dir}/control.sock"


def coordinator_address(run_dir: str, coordinator: str = "coordinator-0") -> str:
    """`coordinator`: its identity. One that takes another's place has an address of its own, so that nothing that was
    on its way to the old one reaches it."""
    return f"ipc://{run_dir}/{coordinator}.sock"


def grammar_address(run_dir: str, coordinator: str = "coordinator-0") -> str:
    """Where this coordinator hears of its grammar process. Names are short: a socket's path has 107 bytes at most."""
    return f"ipc://{run_dir}/{coordinator.replace('coordinator', 'grammar')}.sock"


def remove_coordinator(run_dir: str, coordinator: str) -> None:
    """Of one that has died: where it was heard, nobody is any more. The bells' places go to its successor."""
    for address in (coordinator_address(run_dir, coordinator), grammar_address(run_dir, coordinator)):
        Path(address.removeprefix("ipc://")).unlink(missing_ok=True)


def plan_bell_address(run_dir: str, replica: int = 0) -> str:
    return f"ipc://{run_dir}/plan-bell-{replica}.sock"


def token_bell_address(run_dir: str, replica: int = 0) -> str:
    return f"ipc://{run_dir}/token-bell-{replica}.sock"


def open_socket(context: "zmq.Context[zmq.Socket[bytes]]", kind: int) -> "zmq.Socket[bytes]":
    """A socket that never keeps its process from ending."""
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    return socket


class Bell:
    """The ringing end of a doorbell: never blocks.

    With a queue of one frame, libzmq learns that the frame before has left only when it looks into its mailbox, and
    a non-blocking send looks at most once a millisecond: half of the rings 50 to 500 microseconds apart were lost
    with nothing pending. Asking for EVENTS makes it look.
    """

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self._socket = socket

    def ring(self) -> None:
        self._socket.getsockopt(zmq.EVENTS)
        with contextlib.suppress(zmq.Again):  # a ring is pending already
            self._socket.send(b"", zmq.NOBLOCK)

    def close(self) -> None:
        self._socket.close()


def drain(socket: "zmq.Socket[bytes]") -> None:
    """Takes the rings off the listening end of a doorbell. Done before looking at the ring it stands for, never
    after: a ring that comes while we look then wakes us again."""
    with contextlib.suppress(zmq.Again):
        while True:
            socket.recv(zmq.NOBLOCK)


def plan_bell(context: "zmq.Context[zmq.Socket[bytes]]", run_dir: str, replica: int = 0) -> Bell:
    """The coordinator's bell to its workers."""
    socket = open_socket(context, zmq.PUB)
    socket.setsockopt(zmq.SNDHWM, 1)
    socket.bind(plan_bell_address(run_dir, replica))
    return Bell(socket)


def plan_bell_listener(
    context: "zmq.Context[zmq.Socket[bytes]]", run_dir: str, replica: int = 0
) -> "zmq.Socket[bytes]":
    socket = open_socket(context, zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 1)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(plan_bell_address(run_dir, replica))
    return socket


def token_bell(context: "zmq.Context[zmq.Socket[bytes]]", run_dir: str, replica: int = 0) -> Bell:
    """A worker's bell to its coordinator."""
    socket = open_socket(context, zmq.PUSH)
    socket.setsockopt(zmq.SNDHWM, 1)
    socket.connect(token_bell_address(run_dir, replica))
    return Bell(socket)


def token_bell_listener(
    context: "zmq.Context[zmq.Socket[bytes]]", run_dir: str, replica: int = 0
) -> "zmq.Socket[bytes]":
    socket = open_socket(context, zmq.PULL)
    socket.setsockopt(zmq.RCVHWM, 1)
    socket.bind(token_bell_address(run_dir, replica))
    return socket
