#!/usr/bin/env python3
"""How many requests a second a node of simulated devices carries, for each tensor-parallel degree.

    python tools/capacity.py --device sim:h100 --gpus 8 --shape chat=512/256 --goodput ttft:1000 tpot:50 MODEL ...

A rate is carried when `--share` of the requests have their first token within ttft and the rest at tpot (milliseconds),
under Poisson arrivals over `--seconds`, lengths drawn evenly from half to one and a half times what a shape says. The
highest is searched for to 3%; `--request-rate` looks at one rate instead, carried or not.

The clock is virtual (tools/virtual_replica.py): the real scheduler and routing, the device's roofline, and `--host-us`
for what the host takes where a step waits for it. `--baseline` says the same beside it for a synchronous engine:
--run-ahead 0, gathered sampling, and `--baseline-host-us` between any two steps.
"""

import argparse
import math
import sys
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from shared_routes import new_routes
from virtual_node import Timings, VirtualNode, Workload
from virtual_replica import Clock, VirtualReplica

from albireo.bench.arrivals import arrival_times_s
from albireo.engine_args import EngineArgs, EnginePlan, plan_engine
from albireo.errors import StartupError
from albireo.frontend.routing import Router

NS: Final = 1_000_000_000
PRECISION: Final = 1.03
STEP: Final = 1.25
LEAST_RATE: Final = 0.01
"""Below that nobody asks."""


class Shape(NamedTuple):
    name: str
    input_len: int
    output_len: int


class Engine(NamedTuple):
    name: str
    flags: dict[str, object]
    host_us: float


class Node(NamedTuple):
    """What requests are offered to, and which."""

    args: argparse.Namespace
    plan: EnginePlan
    shape: Shape
    num_replicas: int
    host_us: float


class Carried(NamedTuple):
    """How a degree does at a rate."""

    is_carried: bool
    rate: float
    """Requests per second; 0 if it meets the targets at none."""
    output_rate: float
    good_share: float
    ttft_ms: tuple[float, float]
    """Median and 99th percentile."""
    tpot_ms: tuple[float, float]
    num_preemptions: int
    num_swapped: int
    """KV blocks that went to the host's memory."""
    busy_share: float


NOTHING: Final = Carried(False, 0.0, 0.0, 0.0, (0.0, 0.0), (0.0, 0.0), 0, 0, 0.0)
HEAD: Final = (
    "| model | shape | engine | t x replicas | KV tokens / replica | requests/s | output tok/s | good | "
    "TTFT p50 / p99 ms | TPOT p50 / p99 ms | preempted / blocks swapped | busy |"
)
HEAD_RULE: Final = ("", "---", "---", "---", *["--:"] * 9, "")


def main() -> None:
    args = parse_arguments()
    print(f"{args.device}, {args.gpus} devices, {args.conditions}\n\n{HEAD}\n{'|'.join(HEAD_RULE)}")
    engines = [Engine("overlapped", {}, args.host_us)]
    if args.baseline:
        flags = {"run_ahead": 0, "sampling_mode": "gathered"}
        engines.append(Engine("synchronous", flags, args.baseline_host_us))
    shown = [show(args, model, shape, engine) for model in args.models for shape in args.shape for engine in engines]
    if not all(shown):
        sys.exit("capacity: there are models that run at none of the degrees")


def show(args: argparse.Namespace, model: str, shape: Shape, engine: Engine) -> bool:
    """A line per degree; the best in bold. Says whether there is a degree at which the model runs."""
    lines: list[tuple[float, str]] = []
    num_refused = 0
    for degree in args.degrees:
        num_replicas = args.gpus // degree
        label = f"{degree} x {num_replicas}"
        try:
            plan = engine_plan(args, model, shape, degree, engine.flags)
        except StartupError as error:
            lines.append((0.0, f"{label} | {error} ||||||||"))
            num_refused += 1
            continue
        tokens = VirtualReplica(plan, Clock(), lambda *_: None).kv_tokens
        node = Node(args, plan, shape, num_replicas, engine.host_us)
        found = most_carried(node) if args.request_rate is None else offer(node, args.request_rate)
        lines.append((found.rate if found.is_carried else 0.0, f"{label} | {tokens:,} | {in_words(found)}"))
    best = max(rate for rate, _ in lines)
    for rate, line in lines:
        name = f"**{engine.name}**" if rate == best > 0 else engine.name
        print(f"| {Path(model).name} | {shape.name} {shape.input_len}/{shape.output_len} | {name} | {line}", flush=True)
    return num_refused < len(lines)


def in_words(found: Carried) -> str:
    if not found.rate:
        return "none |||||||"
    return (
        f"{found.rate:.2f} | {found.output_rate:,.0f} | {found.good_share:.0%} | "
        f"{found.ttft_ms[0]:.0f} / {found.ttft_ms[1]:.0f} | {found.tpot_ms[0]:.1f} / {found.tpot_ms[1]:.1f} | "
        f"{found.num_preemptions} / {found.num_swapped} | {found.busy_share:.0%} |"
    )


def engine_plan(
    args: argparse.Namespace, model: str, shape: Shape, degree: int, flags: dict[str, object]
) -> EnginePlan:
    """Raises StartupError."""
    longest = 3 * (shape.input_len + shape.output_len) // 2 + 2
    # prompts have nothing in common, so the prefix cache could only take time
    return plan_engine(
        EngineArgs(
            model, device=args.device, tensor_parallel_size=degree, max_model_len=longest, enable_prefix_caching=False,
            max_num_seqs=args.max_num_seqs, max_num_batched_tokens=args.max_num_batched_tokens,
            swap_space=args.swap_space, **flags,  # type: ignore[arg-type]
        ),
        num_cpus=1,
    )  # fmt: skip


def most_carried(node: Node) -> Carried:
    """By steps from what it does with requests that all come at once, then by halving the gap, down to PRECISION."""
    low, high, best = 0.0, math.inf, NOTHING
    rate = offer(node, math.inf).rate
    while high > low * PRECISION:
        found = offer(node, rate, may_give_up=True)
        if found.is_carried:
            low, best = rate, found
        else:
            high = rate
            if rate < LEAST_RATE:
                return NOTHING
        rate = low * STEP if high == math.inf else math.sqrt(low * high) if low else high / STEP
    return best


def offer(node: Node, rate: float, may_give_up: bool = False) -> Carried:
    """`may_give_up`: as soon as it is clear that the rate is not carried."""
    args, work = node.args, workload(node, rate)
    router = Router("least-work", new_routes(node.num_replicas)[0], node.num_replicas, 1)
    virtual = VirtualNode(node.plan, node.num_replicas, router, round(node.host_us * 1000))
    timings = virtual.run(work, partial(is_hopeless, args, work) if may_give_up else None)
    return NOTHING if timings is None else judge(args, work, timings, virtual.replicas)


def workload(node: Node, rate: float) -> Workload:
    args, shape = node.args, node.shape
    num_requests = max(args.least_requests, 0 if math.isinf(rate) else round(rate * args.seconds))
    draw = np.random.default_rng(args.seed)
    return Workload(
        (arrival_times_s(num_requests, rate, 1.0, args.seed) * NS).astype(np.int64),
        draw.integers(shape.input_len // 2, 3 * shape.input_len // 2, num_requests, endpoint=True),
        draw.integers(shape.output_len // 2, 3 * shape.output_len // 2, num_requests, endpoint=True),
    )


def is_hopeless(args: argparse.Namespace, work: Workload, timings: Timings, num_arrived: int, now_ns: int) -> bool:
    """Too many have missed a target already: they have waited too long, or have ended and were slow."""
    arrival_ns, first_ns = work.arrival_ns[:num_arrived], timings.first_ns[:num_arrived]
    waited_ms = (np.where(first_ns == 0, now_ns, first_ns) - arrival_ns) / 1e6
    has_ended = timings.num_tokens[:num_arrived] == work.output_len[:num_arrived]
    is_slow = has_ended & (tpot_ms(timings)[:num_arrived] > args.goodput["tpot"])
    num_missed = np.count_nonzero((waited_ms > args.goodput["ttft"]) | is_slow)
    return bool(num_missed > (1 - args.share) * work.arrival_ns.size)


def tpot_ms(timings: Timings) -> npt.NDArray[np.float64]:
    times: npt.NDArray[np.float64] = (timings.last_ns - timings.first_ns) / np.maximum(1, timings.num_tokens - 1) / 1e6
    return times


def judge(args: argparse.Namespace, work: Workload, timings: Timings, replicas: list[VirtualReplica]) -> Carried:
    ttft_ms = (timings.first_ns - work.arrival_ns) / 1e6
    per_token_ms = tpot_ms(timings)
    good_share = float(np.mean((ttft_ms <= args.goodput["ttft"]) & (per_token_ms <= args.goodput["tpot"])))
    duration_ns = timings.last_ns.max() - work.arrival_ns[0]
    schedulers = [replica.scheduler for replica in replicas]
    return Carried(
        is_carried=good_share >= args.share,
        rate=work.arrival_ns.size / (work.arrival_ns[-1] - work.arrival_ns[0] or duration_ns) * NS,
        output_rate=timings.num_tokens.sum() / duration_ns * NS,
        good_share=good_share,
        ttft_ms=(float(np.median(ttft_ms)), float(np.percentile(ttft_ms, 99))),
        tpot_ms=(float(np.median(per_token_ms)), float(np.percentile(per_token_ms, 99))),
        num_preemptions=sum(each.counters.num_preemptions for each in schedulers),
        num_swapped=sum(each.swap.num_swapped_out for each in schedulers),
        busy_share=sum(replica.busy_ns for replica in replicas) / len(replicas) / duration_ns,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="checkpoint folders (tools/sim_models.py)")
    parser.add_argument("--device", default="sim:h100", metavar="sim:SPEC")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--tensor-parallel-sizes", metavar="T,T", help="default: all that divide --gpus")
    parser.add_argument(
        "--shape", type=shape, action="append", required=True, metavar="NAME=IN/OUT", help="mean tokens"
    )
    parser.add_argument("--goodput", type=target, nargs=2, default=[("ttft", 1000.0), ("tpot", 50.0)],
                        metavar="METRIC:MS", help="ttft and tpot")  # fmt: skip
    parser.add_argument("--request-rate", type=float, help="inf: --least-requests all at once")
    parser.add_argument("--swap-space", type=float, default=0.0, metavar="GIB", help="of each rank")
    parser.add_argument("--share", type=float, default=0.95, help="of the requests that must meet both")
    parser.add_argument("--seconds", type=float, default=120.0, help="of arrivals")
    parser.add_argument("--least-requests", type=int, default=200)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--host-us", type=float, default=0.0)
    parser.add_argument("--baseline", action="store_true")
    parser.add_argument("--baseline-host-us", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.goodput = dict(args.goodput)
    if args.goodput.keys() != {"ttft", "tpot"}:
        parser.error("--goodput takes ttft:MS and tpot:MS")
    if not args.device.startswith("sim:"):
        parser.error(f"--device must be a simulated one, sim:SPEC, not {args.device}")
    sizes = args.tensor_parallel_sizes
    divisors = [t for t in range(1, args.gpus + 1) if args.gpus % t == 0]
    args.degrees = divisors if sizes is None else [int(size) for size in sizes.split(",")]
    if not set(args.degrees) <= set(divisors):
        parser.error(f"--tensor-parallel-sizes takes divisors of --gpus {args.gpus}, not {sizes}")
    targets = ", ".join(f"{name} {limit:g} ms" for name, limit in args.goodput.items())
    args.conditions = f"{args.share:.0%} of the requests within {targets}"
    return args


def shape(text: str) -> Shape:
    name, _, lengths = text.partition("=")
    given, _, made = lengths.partition("/")
    if not (name and given.isdecimal() and made.isdecimal() and int(given) > 1 and int(made) > 1):
        raise argparse.ArgumentTypeError(f"takes NAME=IN/OUT in tokens, not {text!r}")
    return Shape(name, int(given), int(made))


def target(text: str) -> tuple[str, float]:
    name, _, limit = text.partition(":")
    try:
        value = float(limit)
    except ValueError:
        value = -1.0
    if name not in ("ttft", "tpot") or not value > 0:
        raise argparse.ArgumentTypeError(f"takes ttft:MS or tpot:MS, not {text!r}")
    return name, value


if __name__ == "__main__":
    main()
