"""Clients that ask for a stream and read nothing of it, and what the server does about them."""

import json
import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

_ESTABLISHED = "01"


def server_side_ports(port: int) -> set[int]:
    """Clients' ports of the established connections that the kernel has on the server's side."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state = line.split()[:4]
        if state == _ESTABLISHED and local.endswith(f":{port:04X}"):
            found.add(int(remote.rpartition(":")[2], 16))
    return found


@dataclass
class NeverReaders:
    """Up to `count` of them. `step` is called a few times a second."""

    address: tuple[str, int]
    count: int
    lives_s: list[float] = field(default_factory=list)
    """How long the server bore those that are gone."""
    num_refused: int = 0
    """Attempts; who is refused tries again."""
    _waiting: list[socket.socket] = field(default_factory=list)
    _admitted: dict[int, tuple[socket.socket, float]] = field(default_factory=dict)

    @property
    def num_admitted(self) -> int:
        return len(self._admitted) + len(self.lives_s)

    def step(self) -> None:
        """Opens some, looks who was admitted (without taking a byte from the kernel), and who is gone."""
        for connection in list(self._waiting):
            self._look(connection)
        while len(self._waiting) < 8 and self.num_admitted + len(self._waiting) < self.count:
            self._waiting.append(self._ask())
        alive = server_side_ports(self.address[1])
        for port in [port for port in self._admitted if port not in alive]:
            connection, since = self._admitted.pop(port)
            self.lives_s.append(time.monotonic() - since)
            connection.close()

    def _ask(self) -> socket.socket:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(self.address)
        body = json.dumps({"prompt": [5, 6, 7], "max_tokens": 250, "stream": True, "ignore_eos": True, "logprobs": 20})
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
        connection.sendall(f"{head}{len(body)}\r\n\r\n{body}".encode())
        connection.setblocking(False)
        return connection

    def _look(self, connection: socket.socket) -> None:
        try:
            begin = connection.recv(64, socket.MSG_PEEK)
        except BlockingIOError:
            return
        self._waiting.remove(connection)
        if re.match(rb"HTTP/1.1 200", begin):
            self._admitted[connection.getsockname()[1]] = (connection, time.monotonic())
        else:
            self.num_refused += 1
            connection.close()
