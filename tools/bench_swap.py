"""What KV exhaustion costs: all requests at once, with KV for all of them, and with too little, computing preempted
sequences again or swapping them to host memory. Three servers run side by side and are asked in turns.

    python tools/bench_swap.py [MODEL | --shape 0.6b] --requests 32 --input-len 64 --output-len 448 --kv 0.25 --rounds 5

`--kv`: what there is of the KV that all requests need at their longest; several are measured in turn. What stands
behind `--` is for the servers. Output tokens per second from the first request to the last token; ratios are of turns
that follow each other. `chunk tokens`: of prompts, those computed again with them.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from albireo.bench.own_engine import duration_s
from albireo.bench.serve import serve_bench
from albireo.checkpoint import kv_bytes_per_block, read_checkpoint
from albireo.serve import DEMO_MODEL

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "e2e"))
from gpu_sections.load import first_error, settings
from gpu_sections.model import write_model_folder
from server import Server

BLOCK_SIZE = 16
MODES = ("unlimited", "recompute", "swap")
COUNTED = ("num_preemptions", "swapped_out_blocks", "swapped_in_blocks", "iteration_tokens_total_sum", "engine_steps")


class Turn(NamedTuple):
    """One load on one server."""

    tokens_per_s: float
    preemptions: int
    swapped_out: int
    swapped_in: int
    chunk_tokens: int
    steps: int


def count(server: Server) -> list[float]:
    return [server.metric(f"albireo:{name}" + ("" if name.endswith("sum") else "_total")) for name in COUNTED]


def measure(server: Server, args: argparse.Namespace, seed: int) -> Turn:
    before = count(server)
    load = settings(server.url, args.tokenizer, args.requests, args.input_len, args.output_len, seed)
    run = serve_bench(load, None)
    if problem := first_error(run.outcomes):
        raise SystemExit(problem)
    preemptions, outs, ins, tokens, steps = (int(b - a) for a, b in zip(before, count(server), strict=True))
    produced = args.requests * args.output_len
    # of each answer the first token comes from a chunk, and with it every one behind a preemption
    chunk_tokens = tokens - (produced - args.requests - preemptions)
    return Turn(produced / duration_s(run.outcomes), preemptions, outs, ins, chunk_tokens, steps)


def copying_ms(server: Server) -> float:
    """A block, once."""
    blocks = server.metric("albireo:swapped_out_blocks_total") + server.metric("albireo:swapped_in_blocks_total")
    seconds: float = server.metric("albireo:step_part_seconds_sum", part="swap")
    return 1e3 * seconds / max(blocks, 1)


def computing_ms(server: Server, args: argparse.Namespace) -> float:
    """A token of a prompt, with nothing beside it: the median of a few."""
    length = args.input_len + args.output_len - 1
    times = []
    for seed in range(100, 105):
        before = server.metric("albireo:step_device_seconds_total")
        if problem := first_error(serve_bench(settings(server.url, args.tokenizer, 1, length, 1, seed), None).outcomes):
            raise SystemExit(problem)
        times.append(server.metric("albireo:step_device_seconds_total") - before)
    middle: float = statistics.median(times)
    return 1e3 * middle / float(length)


@contextmanager
def servers(args: argparse.Namespace, share: float, flags: list[str]) -> Iterator[dict[str, Server]]:
    """One of each mode. None has a prefix cache, which would have some of the blocks still."""
    model = read_checkpoint(args.tokenizer, check_weights=False).model
    per_request = -(-(args.input_len + args.output_len) // BLOCK_SIZE)
    block_bytes = kv_bytes_per_block(model, BLOCK_SIZE, "bfloat16")
    all_blocks = args.requests * (per_request + 1)
    few_blocks = max(per_request + 1, int(all_blocks * share))
    max_len = per_request * BLOCK_SIZE
    common = [args.tokenizer, "--no-enable-prefix-caching", "--disable-uvicorn-access-log", "--disable-web-page"]
    common += ["--max-model-len", str(max_len), "--block-size", str(BLOCK_SIZE), "--dtype", "bfloat16"]
    common += ["--load-format", "dummy"] if args.shape else []
    swap = ["--swap-space", str(all_blocks * block_bytes / 2**30)]
    # a hundredth is kept free when a request is admitted
    modes = {"unlimited": (all_blocks * 102 // 100 + 1, []), "recompute": (few_blocks, []), "swap": (few_blocks, swap)}
    with ExitStack() as stack:
        started = {}
        for mode, (num_blocks, more) in modes.items():
            sizes = ["--kv-cache-bytes", str(num_blocks * block_bytes)]
            started[mode] = stack.enter_context(Server(*common, *sizes, *more, *flags))
        print(f"\nKV for {share:g} of the load: {few_blocks} of {all_blocks} blocks of {block_bytes / 1024:.0f} KiB")
        yield started


def compare(args: argparse.Namespace, share: float, flags: list[str]) -> None:
    turns: dict[str, list[Turn]] = {mode: [] for mode in MODES}
    with servers(args, share, flags) as started:
        for mode in MODES:  # kernels loaded, the swap space's pages taken
            measure(started[mode], args, 1)
        for number in range(args.rounds):
            for mode in MODES:
                turns[mode].append(measure(started[mode], args, 2 + number))
        costs = copying_ms(started["swap"]), computing_ms(started["swap"], args)
    print(f"{'':<11}{'tok/s':>9}{'preempted':>11}{'out':>8}{'in':>8}{'chunk tokens':>14}{'steps':>8}")
    for mode in MODES:
        middle = [statistics.median(values) for values in zip(*turns[mode], strict=True)]
        print(
            f"{mode:<11}{middle[0]:>9.1f}{middle[1]:>11.0f}{middle[2]:>8.0f}{middle[3]:>8.0f}{middle[4]:>14.0f}"
            f"{middle[5]:>8.0f}"
        )
    block_ms, token_ms = costs
    print(
        f"a block: {block_ms:.3f} ms to copy once, {BLOCK_SIZE * token_ms:.3f} ms to compute (a prompt's, all at once)"
    )
    for ours, theirs in (("recompute", "unlimited"), ("swap", "unlimited"), ("swap", "recompute")):
        pairs = zip(turns[ours], turns[theirs], strict=True)
        ratios = sorted(mine.tokens_per_s / its.tokens_per_s for mine, its in pairs)
        print(f"{ours} / {theirs}: {statistics.median(ratios):.3f} x ({ratios[0]:.3f} to {ratios[-1]:.3f})", flush=True)


def main() -> None:
    argv = sys.argv[1:]
    own, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", nargs="?", metavar="MODEL", default=str(DEMO_MODEL))
    parser.add_argument("--shape", choices=["0.6b", "1b", "8b"], help="dummy weights of this shape instead")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=448)
    parser.add_argument("--kv", type=float, nargs="+", default=[0.25])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(own)
    with tempfile.TemporaryDirectory() as folder:
        if args.shape:
            args.tokenizer = folder
            write_model_folder(Path(folder), args.shape)
        for share in args.kv:
            compare(args, share, flags)


if __name__ == "__main__":
    main()
