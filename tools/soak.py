"""Minutes of mixed load on a server: Poisson arrivals, lengths of all sizes, clients that leave. What must not grow,
wait or leak is watched: every process's memory, the gaps between device steps, KV blocks, requests.

    python tools/soak.py --minutes 10 --rate 6 -- MODEL --max-model-len 4096 --kv-cache-bytes 1G

Arguments behind -- go to `albireo-run serve`. Exit code 1 when something grew, waited over 100 ms, or leaked.
"""

import argparse
import asyncio
import random
import re
import sys
import time
import urllib.request
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from peer_server import PeerServer
from process_watch import rss_mib

from albireo.bench.connection import ConnectionPool
from albireo.bench.http_requests import http_request
from albireo.bench.machine import describe_machine
from albireo.engine_file import EngineInfo, find_engines
from albireo.shm.flight import FlightReader, Part

MAX_GAP_S = 0.1
MAX_GROWTH_MIB = 8.0
"""From the end of the warm-up to the end: more is growth, less is a few pages more of some stack."""
SAMPLE_S = 1.0
ABORTED = 0.15
"""Share of clients that leave at some moment."""


@dataclass
class Watch:
    """What the engine's processes did, sampled once a second."""

    info: EngineInfo
    readers: dict[str, FlightReader]
    pids: dict[str, int]
    rss_mib: dict[str, list[float]] = field(default_factory=dict)
    gaps_ns: "array[int]" = field(default_factory=lambda: array("q"))
    steps_ns: "array[int]" = field(default_factory=lambda: array("q"))
    num_lost: int = 0
    _seen: dict[str, int] = field(default_factory=dict)

    def sample(self) -> None:
        for name, pid in self.pids.items():
            self.rss_mib.setdefault(name, []).append(rss_mib(pid))
        for name, reader in self.readers.items():
            log = reader.read(self._seen.get(name, 0))
            self._seen[name] = self._seen.get(name, 0) + log.num_lost + log.records.size
            self.num_lost += log.num_lost
            durations = log.records["end_ns"] - log.records["begin_ns"]
            if name == "coordinator-0":
                self.gaps_ns.extend(durations[log.records["part"] == Part.EXPOSED].tolist())
            if name == "worker-0":
                self.steps_ns.extend(durations[log.records["part"] == Part.FORWARD].tolist())


class Answer:
    """A response's status and last bytes."""

    def __init__(self) -> None:
        self.status = 0
        self.tail = b""

    def feed(self, data: bytes, now_ns: int) -> None:
        self.tail = (self.tail + data)[-64:]

    @property
    def is_whole(self) -> bool:
        return self.status == 200 and (self.tail.endswith(b"data: [DONE]\n\n") or self.tail.endswith(b"}"))


async def client(pool: ConnectionPool, request: bytes, leaves_after_s: float | None, outcomes: Counter[str]) -> None:
    answer = Answer()
    try:
        async with asyncio.timeout(leaves_after_s):
            await pool.request(request, answer)
        outcomes["complete" if answer.is_whole else f"status {answer.status}: {answer.tail!r}"] += 1
    except TimeoutError:
        outcomes["left"] += 1
    except OSError as error:
        outcomes[f"failed: {error}"] += 1


def make_request(rng: random.Random, host: str, model: str, vocab_size: int, max_len: int) -> bytes:
    """A request of one of the kinds that users send: 16 to 2,000 tokens each way, mostly short."""

    def length(most: int) -> int:
        return int(16 * (most / 16) ** (rng.random() ** 1.5))

    num_prompt = length(min(2000, max_len - 17))
    body = {
        "model": model,
        "prompt": [rng.randrange(5, vocab_size) for _ in range(num_prompt)],
        "max_tokens": min(length(2000), max_len - num_prompt),
        "ignore_eos": rng.random() < 0.7,
        "stream": rng.random() < 0.8,
        **rng.choice([{"temperature": 0}, {"temperature": 0.8, "top_p": 0.95}, {"temperature": 1.0, "top_k": 50}]),
    }
    if rng.random() < 0.1:
        body["logprobs"] = 3
    if rng.random() < 0.1:
        body["frequency_penalty"] = 0.5
    return http_request("POST", "/v1/completions", host, {}, msgspec.json.encode(body))


async def load(url: str, model: str, vocab: int, max_len: int, args: argparse.Namespace, watch: Watch) -> Counter[str]:
    rng, outcomes = random.Random(args.seed), Counter[str]()
    pool = ConnectionPool(url)
    ends = time.monotonic() + 60 * args.minutes
    next_sample = time.monotonic()
    async with asyncio.TaskGroup() as group:
        due = time.monotonic()
        while due < ends:
            leaves = rng.uniform(0.01, 5.0) if rng.random() < ABORTED else None
            request = make_request(rng, pool.url.netloc, model, vocab, max_len)
            group.create_task(client(pool, request, leaves, outcomes))
            due += rng.expovariate(args.rate)
            while time.monotonic() < due:
                if time.monotonic() >= next_sample:
                    watch.sample()
                    next_sample += SAMPLE_S
                await asyncio.sleep(max(0.0, min(due, next_sample) - time.monotonic()))
    watch.sample()
    pool.close()
    return outcomes


def metric(url: str, name: str) -> float:
    """Sum of a metric's samples."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        text = response.read().decode()
    return sum(float(value) for value in re.findall(rf"^albireo:{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def settle(url: str) -> None:
    """Waits until nothing runs; aborts of clients that left may be on their way."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and metric(url, "num_requests_running") + metric(url, "num_requests_waiting"):
        time.sleep(0.2)


def start_watch(server: PeerServer) -> Watch:
    port = int(server.url.rsplit(":", 1)[1])
    (info,) = (engine for engine in find_engines() if engine.port == port)
    readers = {reader.name: reader for reader in info.flight_readers()}
    pids = {name: reader.read().pid for name, reader in readers.items()}
    return Watch(info, readers, {"supervisor": info.pid} | {name: pid for name, pid in pids.items() if pid})


def report(watch: Watch, outcomes: Counter[str], url: str, args: argparse.Namespace) -> list[str]:
    """Prints what was seen; returns what is wrong."""
    wrong = []
    warm = int(60 * args.warmup_minutes / SAMPLE_S)
    every = max(1, int(60 / SAMPLE_S))
    print("\n| process | RSS MiB after warm-up | at the end | most | growth | minute by minute |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, samples in watch.rss_mib.items():
        after = samples[warm:] or samples
        course = ", ".join(f"{value:.0f}" for value in samples[::every])
        begin, end = float(np.median(after[:10])), float(np.median(after[-10:]))
        print(f"| {name} | {begin:.1f} | {end:.1f} | {max(after):.1f} | {end - begin:+.1f} | {course} |")
        if end - begin > MAX_GROWTH_MIB:
            wrong.append(f"{name} grew by {end - begin:.1f} MiB")
    gaps, steps = np.array(watch.gaps_ns) / 1e6, np.array(watch.steps_ns) / 1e6
    print("\n| ms | count | p50 | p99 | p99.9 | most |\n| --- | --- | --- | --- | --- | --- |")
    for name, values in (("gap between steps, with work to do", gaps), ("forward pass", steps)):
        p50, p99, p999 = np.percentile(values, [50, 99, 99.9])
        print(f"| {name} | {values.size} | {p50:.3f} | {p99:.3f} | {p999:.3f} | {values.max():.3f} |")
    if gaps.max() > 1000 * MAX_GAP_S:
        wrong.append(f"{(gaps > 1000 * MAX_GAP_S).sum()} gaps over {MAX_GAP_S * 1000:.0f} ms")
    if watch.num_lost:
        wrong.append(f"{watch.num_lost} flight records were lost")
    used = metric(url, "kv_cache_usage_perc") * metric(url, "kv_cache_blocks")
    ended = {
        name: metric(url, name) for name in ("num_requests_running", "num_requests_waiting", "num_preemptions_total")
    }
    print(f"\nrequests: {dict(outcomes)}; engine: {ended}; KV blocks in use at the end: {used:.0f}")
    failed = sum(count for outcome, count in outcomes.items() if outcome not in ("complete", "left"))
    answered = metric(url, "request_success_total")
    if used or ended["num_requests_running"] or ended["num_requests_waiting"]:
        wrong.append("blocks or requests are left")
    if failed:
        wrong.append(f"{failed} requests failed")
    # a client that left before its request was read was never a request
    if not outcomes["complete"] <= answered <= outcomes.total():
        wrong.append(f"{answered:.0f} requests ended in the engine, {outcomes.total()} were sent")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--warmup-minutes", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=4.0, help="requests per second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab", type=int, default=8000, help="prompts are of ids below this")
    own, serve = sys.argv[1:], []
    if "--" in own:
        split = own.index("--")
        own, serve = own[:split], own[split + 1 :]
    args = parser.parse_args(own)
    server = PeerServer("albireo", " ".join(["albireo-run serve", *serve, "--port {port}"]), None, "")
    server.start(Path("/tmp"), "/health", 120)
    try:
        watch = start_watch(server)
        with urllib.request.urlopen(f"{server.url}/v1/models") as response:
            card = msgspec.json.decode(response.read())["data"][0]
        outcomes = asyncio.run(load(server.url, card["id"], args.vocab, card["max_model_len"], args, watch))
        settle(server.url)
        machine = describe_machine()
        print(f"{args.minutes:g} minutes at {args.rate:g} requests/s; {machine['cpu']}, {machine['cores']} cores")
        wrong = report(watch, outcomes, server.url, args)
    finally:
        server.stop()
    print("\n" + ("\n".join(f"WRONG: {text}" for text in wrong) or "nothing grew, nothing waited, nothing leaked"))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
