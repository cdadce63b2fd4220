"""`albireo-run serve --ray` on a Ray cluster of two nodes, all on this machine: what works, and what a death costs.

    pip install 'albireo[ray]' openai
    python tools/ray_check.py
    python tools/ray_check.py --only scaling --shows-log

`service`: two replicas of the demo model, a node each; the openai client through both nodes' proxies; 16 streams; a
client that goes; SIGKILL for an actor, an engine, a node; SIGTERM. `scaling` (a device without a
model): a queue that is full, one replica to two and back while streams run. `config`: the example config file.
Prints a table; exit code 1 if a line of it is not as it should be.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

sys.path.insert(0, str(Path(__file__).parent))
from ray_nodes import (
    START_TIMEOUT_S,
    Command,
    EngineOf,
    LocalCluster,
    engines,
    eventually,
    fetch,
    is_served,
    local_cluster,
    metric,
    started_here,
)

KEY = "a-key-of-the-check"
EXAMPLE = Path(__file__).parent / "ray_serve" / "albireo.yaml"
NUM_STREAMS = 16
SUCCESSES = "albireo:request_success_total"
READY = "albireo ready: http://"
"""The command; the engines have a Unix socket each."""
COMMON = ("--kv-cache-bytes", "64M", "--disable-web-page")
GONE_S = 30.0
"""How long what is left of a killed engine may take to go; two cores may have more to do."""


@dataclass(frozen=True)
class Ended:
    """How a request ended: `whole`, or what was wrong."""

    how: str
    text: str = ""


class Table:
    def __init__(self) -> None:
        self.num_bad = 0

    def row(self, what: str, is_good: bool, result: str) -> None:
        self.num_bad += not is_good
        print(f"{'ok ' if is_good else 'BAD'}  {what:58}  {result}", flush=True)


def client(port: int, retries: int = 0, key: str = KEY) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=retries, timeout=300)


async def ask(api: openai.AsyncOpenAI, seed: int, max_tokens: int, stream: bool = True) -> Ended:
    """One completion, to its end."""
    request: dict[str, Any] = {
        "model": "albireo-demo", "prompt": f"The story of function number {seed} begins", "max_tokens": max_tokens,
        "seed": seed, "temperature": 0.0, "stream": stream, "extra_body": {"ignore_eos": True},
    }  # fmt: skip
    text, reason = "", None
    try:
        if not stream:
            choice = (await api.completions.create(**request)).choices[0]
            text, reason = choice.text, choice.finish_reason
        else:
            async for chunk in await api.completions.create(**request):
                text += chunk.choices[0].text
                reason = chunk.choices[0].finish_reason or reason
    except openai.APIStatusError as error:
        return Ended(f"status {error.status_code}", text)
    except openai.APIConnectionError:
        return Ended("cut off" if text else "no connection", text)
    except openai.APIError as error:
        return Ended(f"error event: {error.message}", text)
    except httpx.HTTPError:
        return Ended("cut off", text)
    return Ended("whole" if reason == "length" else f"ended with {reason}", text)


def counted(outcomes: list[Ended]) -> str:
    return ", ".join(f"{count} {how}" for how, count in Counter(each.how for each in outcomes).most_common())


async def counts(name: str, labels: str = "") -> list[float]:
    """A metric of each engine."""
    return [await metric(engine, name, KEY, labels) or 0.0 for engine in engines()]


async def until_running(num: int) -> list[EngineOf]:
    """Waits until so many requests run, some at each engine."""
    for _ in range(600):
        running = await counts("albireo:num_requests_running")
        if sum(running) >= num and all(running):
            break
        await asyncio.sleep(0.02)
    return engines()


async def both_serve(api: openai.AsyncOpenAI, timeout_s: float) -> bool:
    """Waits until there are two replicas and both get requests."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        before = {engine.supervisor: await metric(engine, SUCCESSES, KEY) for engine in engines()}
        await asyncio.gather(*(ask(api, seed, 8) for seed in range(8)))
        after = {engine.supervisor: await metric(engine, SUCCESSES, KEY) for engine in engines()}
        if len(after) == 2 and all((count or 0) > (before.get(pid) or 0) for pid, count in after.items()):
            return True
    return False


class Prober:
    """A client that asks for a few tokens again and again while something else happens."""

    def __init__(self, api: openai.AsyncOpenAI) -> None:
        self._api = api
        self.outcomes: list[Ended] = []

    async def run(self) -> None:
        while True:
            self.outcomes.append(await ask(self._api, len(self.outcomes), 4, stream=False))
            await asyncio.sleep(0.1)


class Service:
    """Two replicas of the demo model."""

    def __init__(self, table: Table, ports: tuple[int, int], cluster: LocalCluster) -> None:
        self._table = table
        self._ports = ports
        self._cluster = cluster
        self._api = client(ports[0])

    async def run(self, command: Command) -> None:
        await self._clients()
        await self._streams()
        await self._client_goes()
        await self._kill("an actor", lambda engine: engine.actor)
        await self._kill("an engine", lambda engine: engine.supervisor)
        self._cluster.add_node()
        await self._kill("a node's raylet", lambda engine: engine.raylet)
        await self._terminate(command)

    async def _clients(self) -> None:
        nodes = {engine.raylet for engine in engines()}
        self._table.row(
            "replicas and their nodes", len(nodes) == len(engines()) == 2, f"{len(engines())} on {len(nodes)}"
        )
        answers = [await ask(client(port), 1, 32, stream) for port in self._ports for stream in (False, True)]
        is_same = len({answer.text for answer in answers}) == 1 and bool(answers[0].text)
        both = "openai, whole and streamed, through both nodes' proxies"
        self._table.row(both, is_same and all(each.how == "whole" for each in answers), counted(answers))
        refused = await ask(client(self._ports[0], key="wrong"), 1, 4)
        self._table.row("a wrong API key", refused.how == "status 401", refused.how)
        probes = [fetch(f"http://127.0.0.1:{self._ports[0]}{path}") for path in ("/health", "/ready", "/-/healthz")]
        self._table.row("/health, /ready, Ray's /-/healthz", all(probes), ", ".join(probes))

    async def _streams(self) -> None:
        before = await counts(SUCCESSES)
        begin_s = time.monotonic()
        outcomes = await asyncio.gather(*(ask(self._api, seed, 200) for seed in range(NUM_STREAMS)))
        seconds = time.monotonic() - begin_s
        after = await counts(SUCCESSES)
        shares = [round(b - a) for a, b in zip(before, after, strict=True)]
        is_good = all(each.how == "whole" for each in outcomes) and sum(shares) == NUM_STREAMS and max(shares) <= 12
        self._table.row("16 streams", is_good, f"{counted(outcomes)}; by replica {shares}; {seconds:.1f} s")

    async def _client_goes(self) -> None:
        before = sum(await counts(SUCCESSES, 'finished_reason="abort"'))
        stream = await self._api.completions.create(
            model="albireo-demo", prompt="x", max_tokens=1900, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        await stream.close()
        aborted = 0.0
        for _ in range(100):
            aborted = sum(await counts(SUCCESSES, 'finished_reason="abort"')) - before
            if aborted:
                break
            await asyncio.sleep(0.1)
        self._table.row("a client that goes ends its request", aborted == 1, f"{aborted:.0f} aborted at the engine")

    async def _kill(self, what: str, victim: Callable[[EngineOf], int]) -> None:
        """SIGKILL under 16 streams, while others go on asking."""
        streams = [asyncio.create_task(ask(self._api, seed, 1500)) for seed in range(NUM_STREAMS)]
        found = await until_running(NUM_STREAMS // 2)
        hit = next(engine for engine in found if not engine.is_on_head)  # Ray does not live on without its head
        probers = [Prober(self._api), Prober(client(self._ports[0], retries=2))]
        asking = [asyncio.create_task(prober.run()) for prober in probers]
        at_hit = round(await metric(hit, "albireo:num_requests_running", KEY) or 0)
        left = {process.pid for process in started_here() if process.parent in (hit.actor, hit.supervisor)} | {
            hit.actor
        }
        begin_s = time.monotonic()
        os.kill(victim(hit), signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(victim(hit), 0)  # a raylet is this process's child; a zombie would count as alive
        outcomes = await asyncio.gather(*streams)
        gone_s = await asyncio.to_thread(
            eventually, lambda: not left & {process.pid for process in started_here()}, GONE_S
        )
        is_back = await both_serve(self._api, 120)
        back_s = time.monotonic() - begin_s
        for task in asking:
            task.cancel()
        num_broken = sum(each.how != "whole" for each in outcomes)
        # one may have begun since; a node's processes take seconds to see that it is gone
        is_good = ("node" in what or num_broken > 0) and num_broken <= at_hit + 1
        self._table.row(f"SIGKILL for {what} under 16 streams", is_good, f"{at_hit} ran there: {counted(outcomes)}")
        without, with_retries = probers
        bad = [each for each in without.outcomes if each.how != "whole"]
        self._table.row(
            "  requests meanwhile, without retries", len(bad) < len(without.outcomes) / 2, counted(without.outcomes)
        )
        is_good = bool(with_retries.outcomes) and all(each.how == "whole" for each in with_retries.outcomes)
        self._table.row("  requests meanwhile, the client's own two retries", is_good, counted(with_retries.outcomes))
        words = "nothing" if gone_s is not None else str(left & {process.pid for process in started_here()})
        self._table.row("  left of the engine", gone_s is not None, words)
        self._table.row("  another replica takes its place", is_back, f"after {back_s:.1f} s")

    async def _terminate(self, command: Command) -> None:
        streams = [asyncio.create_task(ask(self._api, seed, 800)) for seed in range(NUM_STREAMS)]
        await until_running(NUM_STREAMS // 2)
        code = await asyncio.to_thread(command.stop, 120)
        outcomes = await asyncio.gather(*streams)
        is_good = all(each.how == "whole" for each in outcomes) and code == 0
        self._table.row("SIGTERM under 16 streams", is_good, f"{counted(outcomes)}; exit code {code}")


class Scaling:
    """One replica to two and back, by the length of the queues."""

    def __init__(self, table: Table, port: int) -> None:
        self._table = table
        self._api = client(port)

    async def run(self) -> None:
        self._table.row("replicas at the start", len(engines()) == 1, str(len(engines())))
        begin_s = time.monotonic()
        streams = [asyncio.create_task(ask(self._api, seed, 200)) for seed in range(40)]
        seconds = await asyncio.to_thread(eventually, lambda: len(engines()) == 2, 60)
        outcomes = await asyncio.gather(*streams)
        good = {"whole", "status 429"}
        is_good = {each.how for each in outcomes} == good
        self._table.row("40 streams where 8 run and 16 may wait", is_good, counted(outcomes))
        self._table.row("a second replica", seconds is not None, f"started after {seconds or 0:.1f} s")
        served = await both_serve(self._api, 60)
        self._table.row("  takes requests", served, f"{time.monotonic() - begin_s:.1f} s after the burst began")
        # as few as one replica is meant for, some at each, and long enough to be there when one has to go
        streams = [asyncio.create_task(ask(self._api, seed, 600)) for seed in range(4)]
        await until_running(4)
        running = await counts("albireo:num_requests_running")
        outcomes = await asyncio.gather(*streams)
        is_good = all(each.how == "whole" for each in outcomes) and all(running)
        by_replica = [round(value) for value in running]
        self._table.row(
            "streams while a replica is taken away", is_good, f"{counted(outcomes)}; by replica {by_replica}"
        )
        seconds = await asyncio.to_thread(eventually, lambda: len(engines()) == 1, 60)
        self._table.row("  replicas afterwards", seconds is not None, str(len(engines())))


def serve_command(address: str, port: int, *flags: str) -> list[str]:
    command = [sys.executable, "-m", "albireo.cli", "serve", "--ray", "--ray-address", address, "--port", str(port)]
    return [*command, *COMMON, *flags]


def check_service(table: Table, cluster: LocalCluster, ports: tuple[int, int], shows: bool) -> None:
    flags = ("--ray-min-replicas", "2", "--max-num-seqs", "16", "--shutdown-timeout", "60")
    with Command(serve_command(cluster.address, ports[0], *flags), {"ALBIREO_API_KEY": KEY}, shows) as command:
        table.row("start of two replicas of the demo model", True, f"{command.wait_for(READY):.1f} s")
        asyncio.run(Service(table, ports, cluster).run(command))


def check_scaling(table: Table, address: str, port: int, shows: bool) -> None:
    flags = (
        "--device", "null", "--null-step-ms", "50", "--max-num-seqs", "8", "--max-num-waiting", "16",
        "--ray-max-replicas", "2", "--ray-target-ongoing-requests", "4", "--ray-upscale-delay", "1",
        "--ray-downscale-delay", "5", "--shutdown-timeout", "120",
    )  # fmt: skip
    with Command(serve_command(address, port, *flags), {"ALBIREO_API_KEY": KEY}, shows) as command:
        table.row("start of one replica of at most two, no model", True, f"{command.wait_for(READY):.1f} s")
        asyncio.run(Scaling(table, port).run())
        code = command.stop(60)
        table.row("SIGTERM", code == 0, f"exit code {code}")


def check_config(table: Table, address: str, port: int, shows: bool) -> None:
    """The example, with this port and without a model of its own."""
    text = (
        EXAMPLE.read_text()
        .replace("port: 8000", f"port: {port}")
        .replace("/models/my-model", "")
        .replace("cuda", "cpu")
    )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        argv = [str(Path(sys.executable).with_name("serve")), "run", "--address", address, file.name]
        with Command(argv, {"ALBIREO_API_KEY": KEY}, shows) as command:
            seconds = eventually(lambda: is_served(f"http://127.0.0.1:{port}/health"), START_TIMEOUT_S)
            answer = asyncio.run(ask(client(port), 1, 8))
            table.row(
                "serve run, the example config file", answer.how == "whole", f"{answer.how}; {seconds or 0:.1f} s"
            )
            command.stop(120, signal.SIGINT)  # to SIGTERM `serve run` leaves the application where it is


def left_over() -> list[str]:
    """Of Albireo's; Ray's own processes are another's to end."""
    return [process.command for process in started_here() if "albireo" in process.command]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=18431, help="of the first node's proxy; the second's is the next")
    parser.add_argument("--only", choices=["service", "scaling", "config"], action="append", default=[])
    parser.add_argument("--shows-log", action="store_true")
    args = parser.parse_args()
    table, parts = Table(), args.only or ["service", "scaling", "config"]
    with suppress(KeyboardInterrupt), local_cluster(args.port + 1) as cluster:
        if "service" in parts:
            check_service(table, cluster, (args.port, args.port + 1), args.shows_log)
        if "scaling" in parts:
            check_scaling(table, cluster.address, args.port, args.shows_log)
        if "config" in parts:
            check_config(table, cluster.address, args.port, args.shows_log)
        is_clean = eventually(lambda: not left_over(), GONE_S) is not None
        table.row("left of it, with the cluster still there", is_clean, "; ".join(left_over()) or "nothing")
    is_clean = eventually(lambda: not started_here(), GONE_S) is not None
    left = [process.command for process in started_here()]
    table.row("left of it, and of the cluster", is_clean, "; ".join(left) or "nothing")
    return 1 if table.num_bad else 0


if __name__ == "__main__":
    sys.exit(main())
