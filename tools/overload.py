"""Four times the load that a server can bear, and clients that never read.

    python tools/overload.py --seconds 300 --never-read 200
    python tools/overload.py --seconds 60 -- MODEL --kv-cache-bytes 1G

Finds the server's best goodput (output tokens of complete requests per second) with more clients than it runs
sequences, each with one request after the other. Then requests come at `--factor` times the rate at which those were
answered, as a Poisson process, whatever becomes of them; then the best goodput once more, since the machine may have
changed. Last come two waves of clients that ask for long streams and read nothing, while `--good` others go on.

Wrong is: goodput under 90% of the best, a p99 time to first token above twice what those take who may run and wait, a
refusal without Retry-After or whose p99 is above 100 ms, memory that grows by more than 8 MiB in the second half of the
overload or in the second wave, requests that fail in any other way than 429, never-reading clients that stay. Exit
code 1 then. Arguments behind -- go to `albireo-run serve`.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import uvloop
from load_clients import LoadClients, Phase
from never_readers import NeverReaders
from process_watch import MemoryCourse, cpu_wait_s, kernel_tcp_mib

from albireo import limits
from albireo.bench.http_requests import http_request
from albireo.bench.machine import describe_machine
from albireo.bench.process_cpu import cpu_seconds

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "e2e"))
from server import Server

MAX_NUM_SEQS = 32
MAX_NUM_WAITING = 32
FLAGS = ("--max-num-seqs", str(MAX_NUM_SEQS), "--max-num-waiting", str(MAX_NUM_WAITING), "--kv-cache-bytes", "16M",
         "--max-model-len", "512", "--cpu-threads", "1", "--disable-uvicorn-access-log", "--log-level", "warning",
         "--no-enable-prefix-caching")  # fmt: skip
LENGTHS = range(16, 97)
WARMUP_S = 5.0
WINDOW_S = 10.0
MIN_GOODPUT = 0.9
MAX_REFUSAL_S = 0.1
MAX_GROWTH_MIB = 8.0


class Run:
    """One server's ordeal."""

    def __init__(self, server: Server, args: argparse.Namespace) -> None:
        url = urlsplit(server.url)
        self.args = args
        self.pids = {"supervisor": server.process.pid} | server.children()
        self.clients = LoadClients(server.url, args.seed, LENGTHS)
        self.course = MemoryCourse(self.pids)
        self.before = Phase("closed loop, before")
        self.overload = Phase(f"open loop at {args.factor:g} times")
        self.after = Phase("closed loop, after")
        self.beside = Phase("beside never-readers")
        self.address = str(url.hostname), int(url.port or 0)
        self.waves = [NeverReaders(self.address, args.never_read) for _ in range(2 if args.never_read else 0)]
        self.kernel_mib: list[float] = []
        self.retry_after: list[bool] = []
        """Whether refusals said when to come again."""
        self.rate = 0.0
        """Requests per second of the overload."""

    async def run(self) -> None:
        concurrency = MAX_NUM_SEQS + MAX_NUM_WAITING // 2
        await self._phase(
            self.before, self.clients.closed_loop(self.before, concurrency, self.args.capacity_seconds, WARMUP_S)
        )
        self.rate = self.args.factor * len(self.before.complete) / self.before.seconds
        self.course.sample("begin")
        middle = asyncio.get_running_loop().call_later(self.args.seconds / 2, self.course.sample, "middle")
        probe = asyncio.create_task(self._probe())
        await self._phase(self.overload, self.clients.open_loop(self.overload, self.rate, self.args.seconds))
        middle.cancel()
        probe.cancel()
        self.course.sample("end")
        await self._phase(
            self.after, self.clients.closed_loop(self.after, concurrency, self.args.capacity_seconds, WARMUP_S)
        )
        if self.waves:
            await self._phase(self.beside, self._beside_never_readers())
        self.clients.close()

    async def _phase(self, phase: Phase, load: Coroutine[None, None, None]) -> None:
        print(f"{phase.name}...", file=sys.stderr, flush=True)
        used = {name: cpu_seconds(pid) for name, pid in self.pids.items()}
        waited = {name: cpu_wait_s(pid) for name, pid in self.pids.items()}
        await load
        phase.server_cpu_s = {name: cpu_seconds(pid) - used[name] for name, pid in self.pids.items()}
        phase.server_wait_s = {name: cpu_wait_s(pid) - waited[name] for name, pid in self.pids.items()}

    async def _probe(self) -> None:
        """A request a second of which the headers are looked at."""
        body = b'{"prompt": "x", "max_tokens": 1}'
        request = http_request("POST", "/v1/completions", "x", {"Connection": "close"}, body)
        while True:
            reader, writer = await asyncio.open_connection(*self.address)
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 429 "):
                self.retry_after.append(b"retry-after: %d\r\n" % limits.RETRY_AFTER_S in head)
            writer.close()
            await asyncio.sleep(1.0)

    async def _beside_never_readers(self) -> None:
        """One wave after the other: until all have been admitted and are gone, or should be."""
        good = asyncio.create_task(self.clients.closed_loop(self.beside, self.args.good, self.args.never_seconds, 0.0))
        for number, wave in enumerate(self.waves, 1):
            while len(wave.lives_s) < wave.count and not good.done():
                wave.step()
                self.kernel_mib.append(kernel_tcp_mib())
                await asyncio.sleep(0.25)
            self.course.sample(f"wave {number} gone")
        await good
        self.kernel_mib.append(kernel_tcp_mib())


def percentiles(seconds: "list[float]", unit: float = 1.0) -> str:
    if not seconds:
        return "-"
    p50, p99 = np.percentile(seconds, [50, 99]) * unit
    return f"{p50:.3g} / {p99:.3g} / {max(seconds) * unit:.3g}"


def report(run: Run) -> list[str]:
    """Prints what was seen; returns what is wrong."""
    wrong = []
    print(
        "| phase | s | sent | complete | 429 | tokens/s | tokens per CPU s of the worker | TTFT s p50 / p99 / most "
        "| CPU of the generator | of the server, and what it waited for a CPU |"
    )
    print("|" + " --- |" * 10)
    for phase in (run.before, run.overload, run.after, run.beside):
        if not phase.streams:
            continue
        statuses = Counter(each.status for each in phase.streams)
        ttft = percentiles([each.ttft_s for each in phase.streams if each.is_complete])
        cpu = ", ".join(
            f"{name.removeprefix('albireo-')} {seconds:.1f} (waited {phase.server_wait_s[name]:.1f})"
            for name, seconds in phase.server_cpu_s.items()
            if seconds > 0.5
        )
        counts = f"{phase.seconds:.0f} | {len(phase.streams)} | {len(phase.complete)} | {statuses[429]}"
        rates = f"{phase.goodput:.0f} | {phase.worker_efficiency:.0f}"
        share = phase.cpu_s / phase.seconds
        print(f"| {phase.name} | {counts} | {rates} | {ttft} | {phase.cpu_s:.1f} s ({share:.0%}) | {cpu} s |")
        failed = {status: n for status, n in statuses.items() if status not in (200, 429)}
        cut = sum(each.status == 200 and not each.is_complete for each in phase.streams)
        if failed or cut:
            wrong.append(f"{phase.name}: statuses {failed}, {cut} cut short")
    return wrong + report_overload(run) + report_never_readers(run)


def report_overload(run: Run) -> list[str]:
    wrong = []
    best = (run.before.goodput + run.after.goodput) / 2
    ratio = run.overload.goodput / best
    windows = ", ".join(f"{goodput / best:.0%}" for goodput in run.overload.goodput_by_window(WINDOW_S))
    print(f"\ngoodput at {run.rate:.0f} requests/s: {ratio:.1%} of the best ({best:.0f} tokens/s, mean of before and "
          f"after); in windows of {WINDOW_S:.0f} s: {windows}")  # fmt: skip
    if ratio < MIN_GOODPUT:
        wrong.append(f"goodput is {ratio:.1%} of the best")
    refused = [each.elapsed_s for each in run.overload.streams if each.status == 429]
    print(f"refused in ms, p50 / p99 / most: {percentiles(refused, 1e3)}; {sum(s > MAX_REFUSAL_S for s in refused)} of "
          f"{len(refused)} took over {1e3 * MAX_REFUSAL_S:.0f} ms")  # fmt: skip
    if not all(run.retry_after) or (refused and not run.retry_after):
        wrong.append(f"{run.retry_after.count(False)} of {len(run.retry_after)} refusals have no Retry-After")
    if refused and np.percentile(refused, 99) > MAX_REFUSAL_S:
        wrong.append(f"the p99 of refusals is {1e3 * np.percentile(refused, 99):.0f} ms")
    admitted = [each.ttft_s for each in run.overload.streams if each.is_complete]
    bound_s = 2 * (MAX_NUM_SEQS + MAX_NUM_WAITING) * run.args.factor / run.rate
    print(f"time to first token of the admitted in s, p50 / p99 / most: {percentiles(admitted)}; bound {bound_s:.2f}")
    if admitted and np.percentile(admitted, 99) > bound_s:
        wrong.append("the time to first token is not bounded")
    print(f"\n{run.course.table()}")
    wrong += run.course.grown("middle", "end", MAX_GROWTH_MIB)
    return wrong


def report_never_readers(run: Run) -> list[str]:
    wrong = []
    for number, wave in enumerate(run.waves, 1):
        lives = f"{min(wave.lives_s):.0f} to {max(wave.lives_s):.0f} s" if wave.lives_s else "-"
        print(f"\nwave {number} of never-readers: {wave.num_admitted} admitted ({wave.num_refused} refusals before), "
              f"{len(wave.lives_s)} cut off after {lives}")  # fmt: skip
        if len(wave.lives_s) < wave.count:
            wrong.append(f"{wave.count - len(wave.lives_s)} never-reading clients are still there")
    if run.waves:
        before, most, after = run.kernel_mib[0], max(run.kernel_mib), run.kernel_mib[-1]
        print(f"TCP buffers of the whole machine: {before:.1f} MiB before, at most {most:.1f}, {after:.1f} at the end")
        wrong += run.course.grown("wave 1 gone", "wave 2 gone", MAX_GROWTH_MIB)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="of overload")
    parser.add_argument("--factor", type=float, default=4.0, help="times capacity")
    parser.add_argument("--capacity-seconds", type=float, default=20.0, help="of each measurement of the best goodput")
    parser.add_argument("--never-read", type=int, default=200, help="clients of each wave")
    parser.add_argument("--never-seconds", type=float, default=240.0, help="in which both must come and be gone")
    parser.add_argument("--good", type=int, default=4, help="clients beside them")
    parser.add_argument("--seed", type=int, default=1)
    own, serve = sys.argv[1:], []
    if "--" in own:
        split = own.index("--")
        own, serve = own[:split], own[split + 1 :]
    args = parser.parse_args(own)
    with Server(*FLAGS, *serve) as server:
        run = Run(server, args)
        uvloop.run(run.run())
        wrong = report(run)
        children = server.children()
        if {"supervisor": server.process.pid} | children != run.pids:
            wrong.append("a process is another than before")
    machine = describe_machine()
    print(f"\n{machine['cpu']}, {machine['cores']} cores; {' '.join([*FLAGS, *serve])}")
    print("\n".join(f"WRONG: {text}" for text in wrong) or "nothing is wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
