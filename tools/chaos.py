"""Kills engine processes at random under running streams, and compares what the clients got with an undisturbed run.

    python tools/chaos.py --minutes 10 --every 15 --streams 64
    python tools/chaos.py --minutes 2 --every 5 -- -tp 2
    python tools/chaos.py --minutes 2 --replicas 4 --victims worker coordinator replica --signals SIGKILL

Starts a server on the bundled demo model in float32 with two frontends and everything behind `--` as further flags.
Each client sends one request of its own over and over, streamed, greedy or seeded. Every `--every` seconds a process
that is not the supervisor gets SIGKILL or SIGSTOP; with several replicas all processes of one at once, too. A stream
may break only if its own frontend was hit. Prints kills, streams, pauses (the longest wait for a token of each stream
that was running, until the next kill), failures; with several replicas how many streams went on with another one, as
the frontends say, and the pauses of as many, the longest. Exit code 1 if a stream failed, differed, or something was
left behind.
"""

import argparse
import asyncio
import itertools
import json
import math
import os
import random
import re
import signal
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "e2e"))
from server import Server, eventually, processes

STUCK_S = 3
"""--worker-timeout: how long a stopped process may be silent."""
STREAM_TIMEOUT_S = 120.0
ROLES = ("frontend", "coordinator", "worker", "grammar", "replica")
"""`replica`: all processes of one."""
REFUSED = "503: come back"
"""By a frontend that has just started, while the coordinator starts too."""


@dataclass
class Stream:
    """One answer, as it came."""

    port: int = 0
    """The client's own."""
    text: str = ""
    times_s: list[float] = field(default_factory=list)
    problem: str | None = None


@dataclass(frozen=True)
class Kill:
    time_s: float
    name: str
    signal: str
    ports: frozenset[int]
    """Of the clients whose frontend it was."""
    num_lines: int
    """That the server had written before."""


def request(index: int, max_tokens: int) -> bytes:
    """The client's request: greedy for even numbers."""
    body = {
        "model": "albireo-demo", "prompt": f"The story of function number {index} begins", "max_tokens": max_tokens,
        "seed": index, "temperature": float(index % 2), "stream": True, "ignore_eos": True,
    }  # fmt: skip
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    )
    return head.encode() + b"Connection: close\r\n\r\n" + data


async def ask(address: tuple[str, int], payload: bytes) -> Stream:
    """Streams one answer to its end."""
    stream = Stream()
    try:
        reader, writer = await asyncio.open_connection(*address)
        stream.port = writer.get_extra_info("sockname")[1]
        writer.write(payload)
        try:
            async with asyncio.timeout(STREAM_TIMEOUT_S):
                await _read(reader, stream)
        finally:
            writer.close()
    except (OSError, asyncio.IncompleteReadError) as error:
        stream.problem = f"connection lost: {error or type(error).__name__}"
    return stream


async def _read(reader: asyncio.StreamReader, stream: Stream) -> None:
    status = await reader.readline()
    if b" 503 " in status:
        stream.problem = REFUSED
        return
    if b" 200 " not in status:
        stream.problem = f"status {status.decode().strip() or 'none'}"
        return
    while line := await reader.readline():
        if line.startswith(b"data: [DONE]"):
            return
        if not line.startswith(b"data: "):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            stream.problem = f"error event: {event['error']['message']}"
            return
        stream.times_s.append(time.monotonic())
        stream.text += event["choices"][0]["text"]
    stream.problem = "connection lost: the stream has no end"


def client_ports(pid: int, port: int) -> frozenset[int]:
    """Peers' ports of a process's connections on the server's port."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(str(entry.readlink()).removeprefix("socket:[").rstrip("]"))
        except FileNotFoundError:
            continue
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in inodes and int(fields[1].split(":")[1], 16) == port:
            found.add(int(fields[2].split(":")[1], 16))
    return frozenset(found)


class Chaos:
    """Clients and killer of one run."""

    def __init__(self, server: Server, args: argparse.Namespace) -> None:
        host, _, port = server.url.removeprefix("http://").partition(":")
        self._server = server
        self._address = host, int(port)
        self._args = args
        self._random = random.Random(args.seed)
        self._payloads = [request(index, args.max_tokens) for index in range(args.streams)]
        self.expected: list[str] = []
        self.streams: list[tuple[int, Stream]] = []
        """Which client's, and what it got."""
        self.kills: list[Kill] = []
        self.num_refused = 0

    async def run(self) -> None:
        """An undisturbed round of all clients, then chaos."""
        undisturbed = await asyncio.gather(*(ask(self._address, payload) for payload in self._payloads))
        problems = [stream.problem for stream in undisturbed if stream.problem]
        if problems:
            raise SystemExit(f"the undisturbed run failed: {problems[0]}")
        self.expected = [stream.text for stream in undisturbed]
        ends_s = time.monotonic() + 60 * self._args.minutes
        clients = [self._client(index, ends_s) for index in range(self._args.streams)]
        await asyncio.gather(self._kill(ends_s - self._args.every), *clients)

    async def _client(self, index: int, ends_s: float) -> None:
        while time.monotonic() < ends_s:
            stream = await ask(self._address, self._payloads[index])
            if stream.problem == REFUSED:
                self.num_refused += 1
                await asyncio.sleep(1.0)
            else:
                self.streams.append((index, stream))

    async def _kill(self, ends_s: float) -> None:
        while time.monotonic() < ends_s:
            await asyncio.sleep(self._args.every)
            victims = self._victims()
            if not victims:  # those of the last time are not back yet
                continue
            name = self._random.choice(sorted(victims))
            number = signal.Signals[self._random.choice(self._args.signals)]
            ports = client_ports(victims[name][0], self._address[1]) if "frontend" in name else frozenset[int]()
            num_lines = len(self._server.lines)
            for pid in victims[name]:
                os.kill(pid, number)
            kill = Kill(time.monotonic(), name, number.name, ports, num_lines)
            self.kills.append(kill)
            print(f"  {kill.name} {kill.signal}, {len(self.streams)} streams ended so far", file=sys.stderr, flush=True)

    def _victims(self) -> dict[str, list[int]]:
        """Pids by name, those of whole replicas too, of the roles that may be hit."""
        children = {name.removeprefix("albireo-"): pid for name, pid in self._server.children().items()}
        victims = {name: [pid] for name, pid in children.items()}
        num_ranks = sum(name.startswith("worker-") for name in children) // self._args.replicas
        for replica in range(self._args.replicas if self._args.replicas > 1 else 0):
            workers = range(replica * num_ranks, (replica + 1) * num_ranks)
            names = [f"coordinator-{replica}", f"grammar-{replica}", *(f"worker-{rank}" for rank in workers)]
            victims[f"replica-{replica}"] = [children[name] for name in names if name in children]
        roles = self._args.victims
        return {name: pids for name, pids in victims.items() if pids and (not roles or name.partition("-")[0] in roles)}

    def excused(self, stream: Stream) -> bool:
        """Whether its own frontend was hit while it ran."""
        return any(stream.port in kill.ports for kill in self.kills)

    def pauses_s(self, kill: Kill) -> list[float]:
        """The longest wait for a token, of each stream that was running, between this kill and the next."""
        later = self._next(kill)
        ends_s = math.inf if later is None else later.time_s
        longest = []
        for _, stream in self.streams:
            times_s = stream.times_s
            if stream.problem is None and times_s and times_s[0] < kill.time_s < times_s[-1]:
                gaps = itertools.pairwise(times_s)
                longest.append(max(after - before for before, after in gaps if after > kill.time_s and before < ends_s))
        return longest

    def num_moved(self, kill: Kill) -> int:
        """How many requests went on with another replica, until the next kill."""
        later = self._next(kill)
        lines = self._server.lines[kill.num_lines : None if later is None else later.num_lines]
        return sum(int(found[1]) for line in lines if (found := re.search(r": (\d+) requests go on with others", line)))

    def _next(self, kill: Kill) -> Kill | None:
        number = self.kills.index(kill) + 1
        return self.kills[number] if number < len(self.kills) else None


def report(chaos: Chaos) -> int:
    """Prints the figures; returns how many streams failed."""
    ended = [(index, stream) for index, stream in chaos.streams if stream.problem is None]
    lost = [stream for _, stream in chaos.streams if stream.problem is not None]
    failed = [stream for stream in lost if not chaos.excused(stream)]
    different = [index for index, stream in ended if stream.text != chaos.expected[index]]
    kinds = sorted(Counter(f"{kill.name} {kill.signal}" for kill in chaos.kills).items())
    print(f"kills      {len(chaos.kills)}: " + ", ".join(f"{count} x {kind}" for kind, count in kinds))
    num_excused = len(lost) - len(failed)
    print(f"streams    {len(chaos.streams)}: {len(ended)} complete, {num_excused} lost with their frontend")
    print(f"refused    {chaos.num_refused} with 503, and asked again")
    print(f"different  {len(different)} (greedy {sum(index % 2 == 0 for index in different)})")
    print(f"failures   {len(failed)}: {Counter(stream.problem for stream in failed).most_common(3)}")
    print("pauses of the streams that went on (s): number, p50, max")
    by_kind: dict[str, list[float]] = {}
    for kill in chaos.kills:
        kind, pauses, num_moved = (
            f"{kill.name.rpartition('-')[0]} {kill.signal}",
            chaos.pauses_s(kill),
            chaos.num_moved(kill),
        )
        by_kind.setdefault(kind, []).extend(pauses)
        if num_moved:
            by_kind.setdefault(f"{kind}, moved", []).extend(sorted(pauses)[-num_moved:])
    for kind, gaps in sorted(by_kind.items()):
        if gaps:
            print(f"  {kind:28} {len(gaps):5} {statistics.median(gaps):6.2f} {max(gaps):6.2f}")
    return len(failed) + len(different)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=15.0, metavar="S")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--victims", nargs="+", choices=ROLES, help="who is hit; all by default")
    parser.add_argument("--signals", nargs="+", choices=("SIGKILL", "SIGSTOP"), default=["SIGKILL", "SIGSTOP"])
    parser.add_argument("serve_flags", nargs="*", metavar="-- SERVE FLAGS")
    args = parser.parse_args()
    flags = ("--frontends", "2", "--dtype", "float32", "--worker-timeout", str(STUCK_S), "--disable-uvicorn-access-log")
    with Server(*flags, "--replicas", str(args.replicas), *args.serve_flags) as server:
        chaos = Chaos(server, args)
        asyncio.run(chaos.run())
        children = set(server.children().values())
        server.process.send_signal(signal.SIGTERM)
        code = server.wait(60)
        num_bad = report(chaos)
        left = {pid for pid, _, _ in processes()} & children
    is_clean = eventually(lambda: not left)
    print(f"the server's exit code {code}; {'nothing' if is_clean else left} is left of it")
    return 0 if not num_bad and not code and is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
