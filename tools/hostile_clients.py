"""Plays attacks on raw sockets: what is sent, how the connection ends, which statuses come back."""

import asyncio
import random
import re
import socket
import struct
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

from malformed_requests import HOST, JSON, Attack, Ending

PATIENCE_S = 60.0
"""Silence for longer than this is no answer."""
GLANCE_S = 0.25
"""How long a client looks whether something comes where the server may rightly wait."""
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Z]")
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Reply:
    """What one connection brought."""

    statuses: list[int] = field(default_factory=list)
    """In the order in which they came; several where requests were pipelined."""
    timed_out: bool = False


async def play(address: tuple[str, int], attack: Attack) -> Reply:
    """One attack from connect to close."""
    loop = asyncio.get_running_loop()
    reply = Reply()
    with socket.socket() as connection:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):
            await loop.sock_connect(connection, address)
            with suppress(ConnectionError):  # refused before all was sent: the answer may be there nevertheless
                await _send(connection, attack)
            await _end(connection, attack, reply)
    return reply


async def _send(connection: socket.socket, attack: Attack) -> None:
    loop = asyncio.get_running_loop()
    for piece in attack.pieces:
        async with asyncio.timeout(PATIENCE_S):
            await loop.sock_sendall(connection, piece)
        if attack.pause_s:
            await asyncio.sleep(attack.pause_s)
    if attack.ending is Ending.HALF_CLOSE:
        connection.shutdown(socket.SHUT_WR)


async def _end(connection: socket.socket, attack: Attack, reply: Reply) -> None:
    if attack.ending is Ending.LEAVE:
        return
    if attack.ending is Ending.RESET:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        await _read(connection, reply, 4 * GLANCE_S, max_bytes=attack.reset_after_bytes)
    elif attack.ending is Ending.GLANCE:
        await _read(connection, reply, GLANCE_S)
    else:
        await _read(connection, reply, PATIENCE_S)
        return
    reply.timed_out = False


async def _read(connection: socket.socket, reply: Reply, patience_s: float, max_bytes: int = 1 << 30) -> None:
    """Reads until the server closes, there is nothing for so long, or it is enough."""
    loop = asyncio.get_running_loop()
    size, tail = 0, b""
    try:
        while size < max_bytes:
            async with asyncio.timeout(patience_s):
                data = await loop.sock_recv(connection, 65536)
            if not data:
                return
            size += len(data)
            # a status line may lie across two reads
            text = tail + data
            found = list(_STATUS.finditer(text))
            reply.statuses += [int(match[1]) for match in found]
            tail = text[max(found[-1].end() if found else 0, len(text) - 13) :]
    except TimeoutError:
        reply.timed_out = True


@dataclass
class SlowClients:
    """Connections that stay: they send a byte of a head or of a body now and then, or nothing at all. Who is cut off
    comes back at once."""

    address: tuple[str, int]
    byte_every_s: float = 1.0
    lives_s: dict[str, list[float]] = field(default_factory=dict)
    """How long the server bore each, by kind."""
    statuses: dict[str, Counter[str]] = field(default_factory=dict)

    async def run(self, kind: str, seed: int) -> None:
        """One place, until it is cancelled."""
        rng = random.Random(f"{kind}-{seed}")
        lives = self.lives_s.setdefault(kind, [])
        statuses = self.statuses.setdefault(kind, Counter())
        await asyncio.sleep(rng.random() * self.byte_every_s)
        while True:
            began = time.monotonic()
            statuses[await self._connection(kind, rng)] += 1
            lives.append(time.monotonic() - began)
            await asyncio.sleep(0.1)

    async def _connection(self, kind: str, rng: random.Random) -> str:
        """Returns what the server said at the end."""
        loop = asyncio.get_running_loop()
        with socket.socket() as connection:
            connection.setblocking(False)
            try:
                await loop.sock_connect(connection, self.address)
                if kind == "slow body":
                    head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 5000\r\n\r\n"
                    await loop.sock_sendall(connection, head)
                elif kind == "slow head":
                    await loop.sock_sendall(connection, b"GET /health HTTP/1.1\r\nX-Slow: ")
                while True:
                    try:
                        async with asyncio.timeout(self.byte_every_s * (0.5 + rng.random())):
                            data = await loop.sock_recv(connection, 4096)
                        status = _STATUS.search(data)
                        return status[1].decode() if status else "closed"
                    except TimeoutError:
                        if kind != "silent":
                            await loop.sock_sendall(connection, b"x")
            except OSError:
                return "reset"
