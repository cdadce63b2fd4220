"""Compare servers on the same workloads in turns: A B, B A, A B ... within one sitting.

A machine's speed may drift by half within an hour, so only runs that alternate can be compared, by the ratio of
their medians. All launched servers stay up; the ones whose turn it is not are frozen (SIGSTOP), because an idle
engine may poll and on few cores that costs the other its time (`--idle keep` leaves them running, as two servers
that share a machine would; servers given by --server always are).

    tools/bench_peers.py --model DIR --workloads W1,W2,W3 --rounds 5 \\
        --launch 'albireo=albireo-run serve {model} --port {port}' \\
        --launch 'vllm=serve_vllm.sh {model} {port}' --reference vllm --out results
"""

import argparse
import contextlib
import signal
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct
from peer_report import ServerFacts, Turn, markdown, without_folders
from peer_server import PeerServer, ServerError

from albireo.bench.metrics import summarise
from albireo.bench.report import result_record
from albireo.bench.serve import BenchError, serve_bench
from albireo.bench.settings import ServeBenchSettings


class Workload(Struct, frozen=True):
    """Tokens per prompt and output, requests, and how many of them at once."""

    input_len: int
    output_len: int
    num_prompts: int
    max_concurrency: int
    prefix_len: int = 0


WORKLOADS = {
    "W1": Workload(128, 128, num_prompts=3, max_concurrency=1),
    "W2": Workload(128, 128, num_prompts=32, max_concurrency=32),
    "W3": Workload(64, 64, num_prompts=256, max_concurrency=256),
    "W4": Workload(16, 32, num_prompts=16, max_concurrency=16, prefix_len=512),
}
SAMPLINGS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    # top_k and min_p are turned off by name: llama.cpp would apply 40 and 0.05 by itself.
    "sampled": {"temperature": 0.8, "top_p": 0.95, "top_k": 0, "min_p": 0.0},
}


def settings_for(
    workload: Workload, sampling: str, server: PeerServer, tokenizer: str, seed: int, prompt_format: str
) -> ServeBenchSettings:
    """`seed`: of the prompts; one that comes again would be answered from a prefix cache."""
    chosen = SAMPLINGS[sampling]
    return ServeBenchSettings(
        base_url=server.url, endpoint="/v1/completions", model=None, tokenizer=tokenizer,
        prompt_format="text" if prompt_format == "text" else "ids",
        input_len=workload.input_len, prefix_len=workload.prefix_len, output_len=workload.output_len,
        num_prompts=workload.num_prompts, num_warmups=1, max_concurrency=workload.max_concurrency,
        request_rate=float("inf"), burstiness=1.0, ignore_eos=True,
        temperature=chosen["temperature"], top_p=chosen.get("top_p"),
        top_k=int(chosen["top_k"]) if "top_k" in chosen else None, min_p=chosen.get("min_p"),
        extra_body={}, headers={}, seed=seed,
        percentile_metrics=("ttft", "tpot", "itl", "e2el"), metric_percentiles=(50.0, 99.0), goodput={},
        request_timeout_s=1800.0, insecure=False, label=server.name, metadata={},
    )  # fmt: skip


def take_turn(args: argparse.Namespace, server: PeerServer, workload: str, sampling: str, number: int) -> Turn:
    """Thaws the server, runs one workload on it, freezes it again. Raises BenchError."""
    # the same for every server, and for no other turn: greedy prompts that came again as sampled ones were answered
    # from the prefix cache
    seed = args.seed + zlib.crc32(f"{workload} {sampling} {number}".encode())
    settings = settings_for(
        WORKLOADS[workload], sampling, server, args.tokenizer or args.model, seed, args.prompt_format
    )
    with awake(server, args.idle):
        before = server.cpu_s()
        run = serve_bench(settings, args.api_key)
        after = server.cpu_s()
    metrics = summarise(run.outcomes, {})
    record = result_record(settings, run, metrics, detailed=False)
    # The warm-up request is in the CPU time and not in the duration; it is one of many, except in W1.
    cores = (after - before) / (run.client.wall_s + run.warmup_s) if before is not None and after is not None else None
    print(f"{workload} {sampling} round {number} {server.name}: {metrics.output_throughput:.0f} tok/s", file=sys.stderr)
    return Turn(workload, sampling, server.name, number, cores, record)


@contextlib.contextmanager
def awake(server: PeerServer, idle: str) -> Iterator[None]:
    """Lets it run inside, and leaves it as idle servers are to be."""
    server.thaw()
    try:
        yield
    finally:
        if idle == "freeze":
            server.freeze()


def compare(args: argparse.Namespace, servers: Sequence[PeerServer]) -> list[Turn]:
    """All turns but those of the warm-up rounds, which are run and dropped. Samplings alternate too, so that one can be
    compared with another."""
    turns = []
    samplings = args.samplings.split(",")
    for workload in args.workloads.split(","):
        for number in range(-args.warmup_rounds, args.rounds):
            # Whoever began the last round ends this one: a steady drift then favours nobody.
            order = [(sampling, server) for sampling in samplings for server in servers]
            for sampling, server in order if number % 2 == 0 else reversed(order):
                taken = take_turn(args, server, workload, sampling, number)
                turns += [taken] if number >= 0 else []
    return turns


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder: {model} in commands, and the tokenizer")
    parser.add_argument("--tokenizer", help="folder with tokenizer.json, when --model has none")
    parser.add_argument("--launch", action="append", default=[], metavar="NAME=COMMAND", help="with {model}, {port}")
    parser.add_argument("--server", action="append", default=[], metavar="NAME=URL", help="one that runs already")
    parser.add_argument("--reference", help="server that ratios are taken to; default: the last one given")
    parser.add_argument("--workloads", default="W1,W2", help=f"of {', '.join(WORKLOADS)}, comma-separated")
    parser.add_argument("--samplings", default="greedy", help=f"of {', '.join(SAMPLINGS)}, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup-rounds", type=int, default=1, help="run first and dropped")
    parser.add_argument("--idle", choices=["freeze", "keep"], default="freeze", help="launched servers between turns")
    parser.add_argument("--prompt-format", choices=["ids", "text"], default="ids")
    parser.add_argument("--api-key")
    parser.add_argument("--health-path", default="/health")
    parser.add_argument("--start-timeout", type=float, default=600.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="writes OUT.md and OUT.json")
    args = parser.parse_args()
    for flag, chosen, known in (("--workloads", args.workloads, WORKLOADS), ("--samplings", args.samplings, SAMPLINGS)):
        unknown = [name for name in chosen.split(",") if name not in known]
        if unknown:
            parser.error(f"{flag} knows {', '.join(known)}, not {unknown[0]!r}")
    pairs = [pair.partition("=") for pair in args.launch + args.server]
    if not pairs or not all(name and value for name, _, value in pairs):
        parser.error("give servers by --launch NAME=COMMAND or --server NAME=URL")
    args.names = [name for name, _, _ in pairs]
    args.reference = args.reference or args.names[-1]
    if args.reference not in args.names or len(set(args.names)) < len(args.names):
        parser.error("server names must differ, and --reference be one of them")
    return args


def main() -> int:
    args = parse_args()
    launched = [PeerServer(name, command, None, args.model) for name, _, command in _pairs(args.launch)]
    servers = launched + [PeerServer(name, None, url, args.model) for name, _, url in _pairs(args.server)]
    # A frozen server would outlive a tool that is told to stop and skips its `finally`.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    log_dir = Path(tempfile.mkdtemp(prefix="bench_peers_"))
    print(f"server logs in {log_dir}", file=sys.stderr)
    try:
        for server in servers:
            with awake(server, args.idle):
                server.start(log_dir, args.health_path, args.start_timeout)
        turns = compare(args, servers)
        facts = [
            ServerFacts(s.name, without_folders(s.template or "(running already)"), s.start_s, s.memory_gib())
            for s in servers
        ]
    except (ServerError, BenchError) as error:
        print(f"bench_peers: {error}", file=sys.stderr)
        return 1
    finally:
        for server in servers:
            server.stop()
    report = markdown(turns, facts, args.reference, _header(args))
    print(report)
    if args.out is not None:
        args.out.with_suffix(".md").write_text(report)
        saved = msgspec.json.encode({"facts": facts, "turns": turns})
        args.out.with_suffix(".json").write_bytes(msgspec.json.format(saved, indent=1))
    return 1 if any(turn.result["failed"] for turn in turns) else 0


def _pairs(given: Sequence[str]) -> list[tuple[str, str, str]]:
    return [pair.partition("=") for pair in given]


def _header(args: argparse.Namespace) -> list[str]:
    command = " ".join(f"'{part}'" if " " in part else part for part in ["tools/bench_peers.py", *sys.argv[1:]])
    return [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {args.rounds} interleaved rounds, idle servers: {args.idle}",
        f"`{without_folders(command)}`",
        f"Median (range) and ratio to {args.reference}",
    ]


if __name__ == "__main__":
    sys.exit(main())
