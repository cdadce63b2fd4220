"""Streamed completions on one asyncio loop, as cheap as they can be: what is known of each is when it was sent, its
first token, its end and its status."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from albireo.bench.connection import ConnectionPool
from albireo.bench.http_requests import http_request

DONE = b"data: [DONE]\n\n"


class Stream:
    """One request and what came back; a sink of ConnectionPool."""

    __slots__ = ("_tail", "end_ns", "first_ns", "num_tokens", "sent_ns", "status")

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        """Asked for, and come if it is complete."""
        self.status = 0
        """0: the connection failed."""
        self.sent_ns = time.perf_counter_ns()
        self.first_ns = 0
        self.end_ns = 0
        self._tail = b""

    def feed(self, data: bytes, now_ns: int) -> None:
        if not self.first_ns:
            self.first_ns = now_ns
        self._tail = (self._tail + data)[-len(DONE) :] if len(data) < len(DONE) else data[-len(DONE) :]

    @property
    def is_complete(self) -> bool:
        return self.status == 200 and self._tail == DONE

    @property
    def ttft_s(self) -> float:
        return (self.first_ns - self.sent_ns) / 1e9

    @property
    def elapsed_s(self) -> float:
        return (self.end_ns - self.sent_ns) / 1e9


@dataclass
class Phase:
    """A time of load, and its requests."""

    name: str
    streams: list[Stream] = field(default_factory=list)
    begin_ns: int = 0
    end_ns: int = 0
    cpu_s: float = 0.0
    """Of this process, the load generator."""
    server_cpu_s: dict[str, float] = field(default_factory=dict)
    server_wait_s: dict[str, float] = field(default_factory=dict)
    """What their main threads waited for a CPU."""

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9

    @property
    def complete(self) -> list[Stream]:
        """Those that ended in its time."""
        return [each for each in self.streams if each.is_complete and self.begin_ns <= each.end_ns <= self.end_ns]

    @property
    def goodput(self) -> float:
        """Output tokens of complete requests per second."""
        return sum(each.num_tokens for each in self.complete) / self.seconds

    @property
    def worker_efficiency(self) -> float:
        """The same per second of the worker's CPU time: what other users of the machine change least."""
        return self.goodput * self.seconds / max(0.001, self.server_cpu_s.get("albireo-worker-0", 0.0))

    def goodput_by_window(self, window_s: float) -> list[float]:
        sums = [0] * round(self.seconds / window_s)
        for each in self.complete:
            index = int((each.end_ns - self.begin_ns) / 1e9 / window_s)
            if index < len(sums):
                sums[index] += each.num_tokens
        return [total / window_s for total in sums]


class LoadClients:
    """The requests of a run: prompts of 16 ids, outputs of `lengths`, greedy."""

    def __init__(self, url: str, seed: int, lengths: Sequence[int]) -> None:
        self._pool = ConnectionPool(url)
        self._rng = random.Random(seed)
        self._lengths = lengths

    async def one(self, phase: Phase) -> Stream:
        num_tokens = self._rng.choice(self._lengths)
        prompt = [self._rng.randrange(5, 256) for _ in range(16)]
        body = {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        request = http_request("POST", "/v1/completions", self._pool.url.netloc, {}, msgspec.json.encode(body))
        stream = Stream(num_tokens)
        phase.streams.append(stream)
        try:
            await self._pool.request(request, stream)
        except OSError:
            stream.status = 0
        stream.end_ns = time.perf_counter_ns()
        return stream

    async def closed_loop(self, phase: Phase, concurrency: int, seconds: float, warmup_s: float) -> None:
        """So many at once, each followed by the next; the phase begins after the warm-up."""
        ends = time.monotonic() + warmup_s + seconds

        async def client() -> None:
            while time.monotonic() < ends:
                if (await self.one(phase)).status != 200:
                    await asyncio.sleep(0.1)

        clients = [asyncio.create_task(client()) for _ in range(concurrency)]
        await asyncio.sleep(warmup_s)
        await self._measure(phase, seconds)
        await asyncio.gather(*clients)

    async def open_loop(self, phase: Phase, rate: float, seconds: float) -> None:
        """Poisson arrivals at `rate` per second, whatever becomes of them."""
        tasks = set[asyncio.Task[Stream]]()
        measured = asyncio.create_task(self._measure(phase, seconds))
        due = begin = time.monotonic()
        while due < begin + seconds:
            task = asyncio.create_task(self.one(phase))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due += self._rng.expovariate(rate)
            if (wait_s := due - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
        await measured
        await asyncio.gather(*tasks)

    async def _measure(self, phase: Phase, seconds: float) -> None:
        cpu_s = time.process_time()
        phase.begin_ns = time.perf_counter_ns()
        await asyncio.sleep(seconds)
        phase.end_ns = time.perf_counter_ns()
        phase.cpu_s = time.process_time() - cpu_s

    def close(self) -> None:
        self._pool.close()
