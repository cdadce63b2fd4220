"""Malformed requests by the hundred thousand against a running server, while good clients go on.

    python tools/bombard.py --requests 100000

Starts a server on the bundled demo model and sends requests of every class in malformed_requests.py over many raw
sockets: fuzzed bodies, wrong lengths, broken chunks, odd heads, other protocols, half-closed and reset connections.
`--slow` more connections stay all the time and send a byte now and then, or nothing. `--good` clients ask the same
greedy and seeded things again and again: each answer must be the one that the server gave before.

Before all that every KV block is written once: a worker takes the cache's memory when it is first used.

Wrong is: a 5xx other than 503, silence where an answer is due, memory that grows by more than 8 MiB in the second
half (by then buffers and caches have been as large as they get), a good answer that failed or differs, a process that
is another than before, a server that is not well at the end. Request 1234 of seed 1 alone: `--seed 1 --first 1234
--requests 1`. Exit code 1 if something is wrong.
"""

import argparse
import asyncio
import json
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import uvloop
from fill_kv_cache import fill_kv_cache
from hostile_clients import PATIENCE_S, Reply, SlowClients, play
from malformed_requests import Attack, attack
from process_watch import MemoryCourse

from albireo.bench.connection import ConnectionPool, KeptBody
from albireo.bench.http_requests import http_request

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "e2e"))
from server import Server

MAX_GROWTH_MIB = 8.0
WARMUP_REQUESTS = 10_000
"""In which buffers and caches become as large as they get; a run of less than twice as many says nothing of memory."""
SLOW_KINDS = ("slow head", "slow body", "silent")
GOOD_BODIES = tuple(
    {"prompt": prompt, "max_tokens": 40, "stream": True, "ignore_eos": True, **sampling}
    for prompt in ("Once upon a time", "The little dog", [5, 6, 7, 8])
    for sampling in ({"temperature": 0}, {"temperature": 0.9, "seed": 7})
)
FLAGS = ("--kv-cache-bytes", "64M", "--max-model-len", "256", "--disable-uvicorn-access-log",
         "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--log-level", "error")  # fmt: skip


@dataclass
class GoodClients:
    """The streams that must not notice anything."""

    url: str
    expected: list[str] = field(default_factory=list)
    num_same: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    async def ask(self, pool: ConnectionPool, index: int) -> str:
        """The text of one answer."""
        sink = KeptBody(1 << 20)
        request = http_request("POST", "/v1/completions", pool.url.netloc, {}, json.dumps(GOOD_BODIES[index]).encode())
        await pool.request(request, sink)
        if sink.status != 200 or not sink.content.endswith(b"data: [DONE]\n\n"):
            raise ValueError(f"status {sink.status}: {sink.content[-300:]!r}")
        events = [line[6:] for line in sink.content.split(b"\n") if line.startswith(b"data: {")]
        return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])

    async def prepare(self) -> None:
        pool = ConnectionPool(self.url)
        self.expected = [await self.ask(pool, index) for index in range(len(GOOD_BODIES))]
        pool.close()

    async def run(self, number: int) -> None:
        """One client, until it is cancelled."""
        pool = ConnectionPool(self.url)
        index = number
        while True:
            index = (index + 1) % len(GOOD_BODIES)
            began = time.monotonic()
            try:
                text = await self.ask(pool, index)
            except (OSError, ValueError) as error:
                self.wrong.append(f"good stream {index} failed: {error}")
                continue
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            if text == self.expected[index]:
                self.num_same += 1
            else:
                self.wrong.append(f"good stream {index} differs: {text!r}, not {self.expected[index]!r}")


@dataclass
class Tally:
    """What came back, by class."""

    count: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    silent: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, index: int, name: str, sent: Attack, reply: Reply) -> None:
        self.count[name] += 1
        self.statuses.setdefault(name, Counter()).update(reply.statuses)
        if not reply.statuses:
            self.silent[name] += 1
        shown = b"".join(sent.pieces)[:600]
        if any(status >= 500 and status != 503 for status in reply.statuses):
            self.wrong.append(f"request {index} ({name}) brought {reply.statuses}: {shown!r}")
        if sent.is_right and reply.statuses not in ([200], [503]):
            self.wrong.append(f"request {index} ({name}) is right and brought {reply.statuses}: {shown!r}")
        if reply.timed_out:
            self.wrong.append(f"request {index} ({name}) had no end after {PATIENCE_S:.0f} s: {shown!r}")
        elif sent.must_answer and not reply.statuses:
            self.wrong.append(f"request {index} ({name}) had no answer: {shown!r}")

    def table(self) -> str:
        lines = ["| class | requests | no answer | answers by status |", "| --- | --- | --- | --- |"]
        for name in sorted(self.count):
            statuses = ", ".join(f"{status}: {n}" for status, n in sorted(self.statuses[name].items()))
            lines.append(f"| {name} | {self.count[name]} | {self.silent[name]} | {statuses} |")
        total = Counter[str]()
        for counts in self.statuses.values():
            for status, n in counts.items():
                total[f"{status // 100}xx" if status < 500 else str(status)] += n
        statuses = ", ".join(f"{kind}: {n}" for kind, n in sorted(total.items()))
        lines.append(f"| all | {self.count.total()} | {self.silent.total()} | {statuses} |")
        return "\n".join(lines)


async def bombard(address: tuple[str, int], args: argparse.Namespace, tally: Tally, course: MemoryCourse) -> None:
    """All of the requests, `args.connections` at once; samples memory at each quarter."""
    last = args.first + args.requests
    numbers = iter(range(args.first, last))
    marks = {args.first + args.requests * quarter // 4: f"{25 * quarter}%" for quarter in (1, 2, 3)}

    async def worker() -> None:
        for index in numbers:
            if index in marks:
                course.sample(marks[index])
                print(f"{marks[index]} after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            name, story = attack(args.seed, index)
            tally.add(index, name, story, await play(address, story))

    began = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(min(args.connections, args.requests))))


async def run(
    server: Server, args: argparse.Namespace, tally: Tally, good: GoodClients, slow: SlowClients
) -> MemoryCourse:
    await good.prepare()
    course = MemoryCourse({"supervisor": server.process.pid} | server.children())
    course.sample("begin")
    others = [asyncio.create_task(good.run(number)) for number in range(args.good)]
    others += [asyncio.create_task(slow.run(SLOW_KINDS[number % 3], number)) for number in range(args.slow)]
    await bombard(slow.address, args, tally, course)
    course.sample("100%")
    for task in others:
        task.cancel()
    ended = await asyncio.gather(*others, return_exceptions=True)
    good.wrong += [f"a client broke: {error!r}" for error in ended if isinstance(error, Exception)]
    return course


def find_wrong(
    server: Server, tally: Tally, good: GoodClients, course: MemoryCourse, begun: dict[str, int]
) -> list[str]:
    wrong = [*tally.wrong, *good.wrong]
    if not good.num_same:
        wrong.append("no good stream was complete")
    if server.children() != begun:
        wrong.append(f"the processes were {begun} and are {server.children()}")
    if tally.count.total() >= 2 * WARMUP_REQUESTS:
        wrong += course.grown("50%", "100%", MAX_GROWTH_MIB)
    try:
        with urllib.request.urlopen(f"{server.url}/health", timeout=10) as response:
            assert response.status == 200
        server.post("/v1/completions", {"prompt": "Once", "max_tokens": 3})
    except OSError as error:
        wrong.append(f"the server is not well: {error}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=128, help="attacks at once")
    parser.add_argument("--slow", type=int, default=300, help="connections that dribble or are silent, all the time")
    parser.add_argument("--good", type=int, default=4, help="streams at once that must be right")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first request")
    parser.add_argument("--log", action="store_true", help="print the server's log")
    args = parser.parse_args()
    tally = Tally()
    with Server(*FLAGS) as server:
        url, begun = urlsplit(server.url), server.children()
        good, slow = GoodClients(server.url), SlowClients((str(url.hostname), int(url.port or 0)))
        fill_kv_cache(server.url)
        began = time.monotonic()
        course = uvloop.run(run(server, args, tally, good, slow))
        elapsed_s = time.monotonic() - began
        time.sleep(1.0)
        course.sample("a second later")
        wrong = find_wrong(server, tally, good, course, begun)
    print(tally.table())
    print(f"\n{course.table()}\n\n| slow clients | cut off | after s, median | how |\n| --- | --- | --- | --- |")
    for kind, lives in slow.lives_s.items():
        median = f"{sorted(lives)[len(lives) // 2]:.0f}" if lives else "-"
        print(f"| {kind} | {len(lives)} | {median} | {dict(slow.statuses[kind])} |")
    print(f"\n{args.requests} requests in {elapsed_s:.0f} s ({args.requests / elapsed_s:.0f}/s), seed {args.seed}")
    print(f"{good.num_same} good streams the same, {len(good.wrong)} not, the slowest took {good.slowest_s:.1f} s")
    logged = [line for line in server.lines if "ERROR" in line or "Traceback" in line]
    if args.log:
        print("\n".join(server.lines))
    for line in [*logged[:20], *(f"WRONG: {text}" for text in wrong[:40])]:
        print(line)
    print(f"{len(logged)} errors in the log, {len(wrong)} things are wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
