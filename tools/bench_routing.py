"""Routing policies beside each other: conversations of several turns on replicas of a simulated GPU.

    python tools/bench_routing.py --replicas 2 4 --kv 6G ample --rounds 3
    python tools/bench_routing.py --replicas 4 --kv 6G --policies cache-aware -- --frontends 2

For each number of replicas and each size of the KV cache one server for each policy, side by side. They are asked in
turns, the same conversations in one round, in the opposite order in every second round; each round has conversations
of its own. `--rate` is of conversations for each replica. What stands behind `--` is for the servers.

Of the turns that are sent after the warm-up: the share of their prompts' tokens that came from a cache, and the most
that one cache for all could have had; times to first token and per output token, of all rounds together with the range
of the rounds; requests of each replica beside their mean. Then what the host did: CPU of all processes, what their
main threads waited for a CPU, how late the client sent, and how long devices waited between steps (exposed). Where
these are small, the figures are the devices'; rounds where they are not are counted as disturbed.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import uvloop
from conversations import ConversationClients, ConversationSettings, TurnResult, plan_conversations
from msgspec import Struct
from process_watch import cpu_wait_s
from sim_models import SHAPES, write_model

from albireo.bench.machine import describe_machine
from albireo.bench.process_cpu import cpu_by_role, cpu_seconds

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "e2e"))
from server import Server

POLICIES = ("cache-aware", "least-work", "round-robin")
COUNTED = ("num_preemptions_total", "step_device_seconds_total", "step_exposed_seconds_total")
MAX_WAITED = 0.1
MAX_EXPOSED = 0.02
"""Above these a round is disturbed: the host has a part in its figures."""
MOST_S = 60.0
"""In which a round's last answers must be there, after its last turn was sent."""


class Round(Struct, frozen=True):
    """One load on one server. Shares are of 1."""

    policy: str
    cached: float
    """Of the prompts' tokens."""
    cacheable: float
    ttft_s: list[float]
    tpot_s: list[float]
    tokens_per_s: float
    """Output of the turns that count."""
    requests: list[int]
    """Of each replica, the warm-up's too."""
    preemptions: int
    busy: float
    """Devices' time in steps beside the run's."""
    exposed: float
    """Devices' time between steps, beside that in steps."""
    cpu: dict[str, float]
    """Cores that each role's processes used together; `client` is this process."""
    waited: float
    """Most that one process's main thread waited for a CPU, beside the run's time."""
    late_s: float
    """p99 of how late the client sent."""

    @property
    def is_disturbed(self) -> bool:
        return self.waited > MAX_WAITED or self.exposed > MAX_EXPOSED


class Snapshot:
    """A server's counters, and its processes' times."""

    def __init__(self, server: Server) -> None:
        with urllib.request.urlopen(f"{server.url}/metrics") as response:
            text = response.read().decode()
        self.time_s = time.perf_counter()
        self.total = {name: sum(_by_replica(text, name)) for name in COUNTED}
        self.requests = _by_replica(text, "request_success_total", 'finished_reason="length"')
        pids = server.children()
        self.cpu = cpu_by_role(pids) | {"supervisor": cpu_seconds(server.process.pid), "client": time.process_time()}
        self.waited = {name: cpu_wait_s(pid) for name, pid in pids.items()}


def _by_replica(text: str, name: str, label: str = "") -> list[float]:
    """A metric's values, by replica."""
    lines = re.findall(rf"^albireo:{name}{{engine=\"(\d+)\"(.*)}} (\S+)$", text, re.MULTILINE)
    return [float(value) for _, value in sorted((int(n), v) for n, labels, v in lines if label in labels)]


def measure(server: Server, policy: str, args: argparse.Namespace, load: ConversationSettings, seed: int) -> Round:
    conversations = plan_conversations(load, seed)
    clients = ConversationClients(server.url, load, SHAPES[args.model]["vocab_size"])
    before = Snapshot(server)
    results = uvloop.run(clients.run(conversations, MOST_S))
    after = Snapshot(server)
    counted = [result for result in results if result.sent_s >= load.warmup_s]
    return summarise(policy, counted, before, after, load)


def summarise(
    policy: str, results: Sequence[TurnResult], before: Snapshot, after: Snapshot, load: ConversationSettings
) -> Round:
    elapsed_s = after.time_s - before.time_s
    outcomes = [result.outcome for result in results]
    prompt_tokens = sum(outcome.prompt_tokens for outcome in outcomes)
    preemptions, device_s, exposed_s = (after.total[name] - before.total[name] for name in COUNTED)
    requests = [int(now - then) for now, then in zip(after.requests, before.requests, strict=True)]
    return Round(
        policy=policy,
        cached=sum(outcome.cached_tokens for outcome in outcomes) / prompt_tokens,
        cacheable=sum(result.num_known for result in results) / prompt_tokens,
        ttft_s=[outcome.ttft_ns / 1e9 for outcome in outcomes],
        tpot_s=[outcome.tpot_ns / 1e9 for outcome in outcomes if outcome.tpot_ns is not None],
        tokens_per_s=sum(outcome.output_tokens for outcome in outcomes) / (load.seconds - load.warmup_s),
        requests=requests,
        preemptions=int(preemptions),
        busy=device_s / elapsed_s / len(requests),
        exposed=exposed_s / device_s,
        cpu={role: (seconds - before.cpu[role]) / elapsed_s for role, seconds in after.cpu.items()},
        waited=max(seconds - before.waited[name] for name, seconds in after.waited.items()) / elapsed_s,
        late_s=float(np.percentile([result.late_s for result in results], 99)),
    )


def compare(folder: Path, replicas: int, kv: str, args: argparse.Namespace, flags: list[str]) -> list[Round]:
    """All rounds of all policies with so many replicas."""
    serve = [str(folder), "--device", args.device, "--replicas", str(replicas), *flags]
    serve += ["--disable-uvicorn-access-log", "--disable-web-page"]
    serve += [] if kv == "ample" else ["--kv-cache-bytes", kv]
    load = ConversationSettings(
        rate=args.rate * replicas, seconds=args.seconds, warmup_s=args.warmup, groups=args.groups,
        system_tokens=args.system, turns=args.turns, user_tokens=args.user, output_tokens=args.output,
        think_s=args.think,
    )  # fmt: skip
    rounds: list[Round] = []
    with ExitStack() as stack:
        servers = {policy: stack.enter_context(Server(*serve, "--routing-policy", policy)) for policy in args.policies}
        ready = next(line for line in next(iter(servers.values())).lines if "albireo ready" in line)
        print(
            f"\n{replicas} replicas, {ready.partition('KV cache ')[2].partition('  ')[0]} of KV for each\n", flush=True
        )
        for number in range(args.rounds):
            for policy in args.policies if number % 2 == 0 else args.policies[::-1]:
                seed = args.seed + 1000 * replicas + number
                rounds.append(measure(servers[policy], policy, args, load, seed))
                done = rounds[-1]
                remark = ", disturbed" if done.is_disturbed else ""
                turns = f"{len(done.ttft_s)} turns, cached {done.cached:.0%}{remark}"
                print(f"  round {number} {policy}: {turns}", file=sys.stderr, flush=True)
    return rounds


def report(rounds: Sequence[Round], policies: Sequence[str]) -> None:
    print("| policy | cached, % of prompts | TTFT p50, ms | TTFT p99, ms | TPOT p99, ms | tok/s | devices busy, % "
          "| requests of a replica, beside their mean | preempted |")  # fmt: skip
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for policy in policies:
        own = [each for each in rounds if each.policy == policy]
        cells = [
            spread(own, lambda each: 100 * each.cached),
            pooled(own, lambda each: each.ttft_s, 50),
            pooled(own, lambda each: each.ttft_s, 99),
            pooled(own, lambda each: each.tpot_s, 99),
            spread(own, lambda each: each.tokens_per_s),
            spread(own, lambda each: 100 * each.busy),
            balance(own),
            f"{sum(each.preemptions for each in own)}",
        ]
        print(f"| {policy} | {' | '.join(cells)} |")
    most = statistics.median(each.cacheable for each in rounds)
    print(f"\nOne cache for all could have had {most:.0%}. The host:\n")
    roles = sorted(rounds[0].cpu, key=lambda role: -rounds[0].cpu[role])
    names = ", ".join(role.removeprefix("albireo-") for role in roles)
    print(f"| policy | cores: {names} | all | one waited for a CPU, % | sent late, p99 ms | exposed, % | disturbed |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for policy in policies:
        own = [each for each in rounds if each.policy == policy]
        cores = ", ".join(f"{statistics.median(each.cpu[role] for each in own):.2f}" for role in roles)
        cells = [
            spread(own, lambda each: sum(each.cpu.values()), 2),
            spread(own, lambda each: 100 * each.waited, 1),
            spread(own, lambda each: 1e3 * each.late_s, 1),
            spread(own, lambda each: 100 * each.exposed, 1),
            f"{sum(each.is_disturbed for each in own)} of {len(own)}",
        ]
        print(f"| {policy} | {cores} | {' | '.join(cells)} |")
    sys.stdout.flush()


def spread(rounds: Sequence[Round], of: Callable[[Round], float], digits: int = 0) -> str:
    """Median and range."""
    values = [of(each) for each in rounds]
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def pooled(rounds: Sequence[Round], of: Callable[[Round], list[float]], percentile: float) -> str:
    """The percentile of all rounds' values together, in ms, and the range of the rounds' own."""
    each = [1e3 * float(np.percentile(of(one), percentile)) for one in rounds]
    together = 1e3 * float(np.percentile([value for one in rounds for value in of(one)], percentile))
    return f"{together:.0f} ({min(each):.0f}-{max(each):.0f})"


def balance(rounds: Sequence[Round]) -> str:
    """Least and most that a replica had in a round, beside the mean of all."""
    shares = [number / statistics.mean(each.requests) for each in rounds for number in each.requests]
    return f"{min(shares):.2f}-{max(shares):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--kv", nargs="+", default=["6G", "ample"], help="bytes of a replica; ample: what the GPU has")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--model", choices=sorted(SHAPES), default="qwen3-14b")
    parser.add_argument("--device", default="sim:h100")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=3.0, help="conversations per second and replica")
    parser.add_argument("--seconds", type=float, default=16.0, help="of a round, with its warm-up")
    parser.add_argument("--warmup", type=float, default=5.0)
    parser.add_argument("--groups", type=int, default=8, help="system prompts")
    parser.add_argument("--system", type=int, default=1500, help="tokens of a system prompt (means, as the others)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--user", type=int, default=250)
    parser.add_argument("--output", type=int, default=80)
    parser.add_argument("--think", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path, help="all rounds as JSON")
    own, flags = sys.argv[1:], []
    if "--" in own:
        split = own.index("--")
        own, flags = own[:split], own[split + 1 :]
    args = parser.parse_args(own)
    saved = []
    machine = describe_machine()
    print(f"{time.strftime('%Y-%m-%d')}, {machine['cpu']}, {machine['cores']} cores\npython {' '.join(sys.argv)}")
    with tempfile.TemporaryDirectory() as folder:
        shape = write_model(Path(folder), args.model)
        for replicas in args.replicas:
            for kv in args.kv:
                rounds = compare(shape, replicas, kv, args, flags)
                report(rounds, args.policies)
                saved.append({"replicas": replicas, "kv": kv, "rounds": msgspec.to_builtins(rounds)})
    if args.save:
        options = {name: value for name, value in vars(args).items() if name != "save"}
        args.save.write_text(json.dumps({"machine": machine, "options": options, "serve": flags, "runs": saved}))


if __name__ == "__main__":
    main()
