#!/usr/bin/env python3
"""Measure decode steps of the CPU device, fit a simulated device's spec to them, and say how far the two are apart.

    python tools/calibrate_cpu.py MODEL SPEC.toml [--ranks 1 2] [--batch 1 ... 64] [--context 128 ... 4096]

A rank is a process with `--threads` threads, the real CpuDevice and collectives through shared memory; steps are
planned by hand (tools/step_runner.py), at temperature 0.8 and top_p 0.95. A figure is the median (--least: the least)
of --steps steps as rank 0 sees them, over --rounds rounds through all of the grid. Points whose KV cache would take
more than --kv-gib on all ranks together are left out.

The peak rates of the spec are what the machine reads and multiplies at best (tools/machine_rates.py), or what the fit
found if that is more. `--from FILE` fits again to what was measured before (SPEC.toml's neighbour SPEC.json).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec.structs import replace
from spec_fit import Measured, fit_spec, predict

from albireo.checkpoint import kv_bytes_per_block, read_checkpoint
from albireo.config import Dtype
from albireo.gpu_worker.launch_env import worker_environment
from albireo.shm import layout, segment
from albireo.shm.collective_segment import CollectiveSegment
from albireo.sim.spec import DeviceSpec, Efficiency, Flops, Link, Overhead, Power, Sampling, encode_spec

BLOCK_SIZE: Final = 16
WARM_UP_STEPS: Final = 2
ROUND_WARM_UPS: Final = 10
MIB: Final = 1 << 20


def main() -> None:
    args = parse_arguments()
    if args.rank is not None:
        run_rank(args)
        return
    record = Path(args.load) if args.load else args.spec.with_suffix(".json")
    measured: dict[str, Any] = json.loads(record.read_text()) if args.load else measure(args)
    record.write_text(json.dumps(measured, indent=1))
    model, dtype = read_checkpoint(args.model).model, model_dtype(args.model)
    points = [Measured(*point) for point in measured["points"]]
    peaks = peak_spec(args, dtype, measured["flops"], measured["bandwidth"])
    spec = within_peaks(fit_spec(loose(peaks), model, dtype, "local", points), peaks)
    args.spec.write_text(encode_spec(spec))
    report(points, predict(spec, model, dtype, "local", points))
    print(f"\n{args.spec}: {spec.efficiency}, {spec.overhead}, {spec.sampling}, {spec.link}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("spec", type=Path, help="the file to write")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--context", type=int, nargs="+", default=[128, 512, 1024, 2048, 4096])
    parser.add_argument("--threads", type=int, default=1, help="of a rank")
    parser.add_argument("--steps", type=int, default=10, help="of each kind and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kv-gib", type=float, default=4.0)
    parser.add_argument("--least", action="store_true", help="the least in place of the median, on a busy machine")
    parser.add_argument("--from", dest="load", metavar="FILE", help="measure nothing, fit to this")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def model_dtype(path: str) -> Dtype:
    return "float32" if read_checkpoint(path).model.dtype == "float32" else "bfloat16"


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Step times, as Measured's fields, and the machine's rates. Groups take turns: a machine's load changes."""
    groups = [RankGroup(args, size) for size in args.ranks]
    times: dict[tuple[int, int, int], list[float]] = {}
    for _ in range(args.rounds):
        for group in groups:
            for batch, context, found in group.run_round():
                times.setdefault((group.size, batch, context), []).extend(found)
    rates = groups[0].measure_rates()
    for group in groups:
        group.end()
    choose = min if args.least else statistics.median
    # a step's context is that of the measured ones' middle
    middle = WARM_UP_STEPS + args.steps // 2
    points = [[size, batch, context + middle, choose(found)] for (size, batch, context), found in times.items()]
    return {"points": points, **rates}


class RankGroup:
    """The processes of `size` ranks, which do a round whenever they are told."""

    def __init__(self, args: argparse.Namespace, size: int) -> None:
        self.size = size
        geometry = CollectiveSegment(size)
        fd = segment.create("collectives", geometry.size)
        geometry.initialise(fd)
        environment = {**os.environ, **worker_environment(args.threads)}
        command = [sys.executable, *sys.argv, "--size", str(size), "--fd", str(fd)]
        self._ranks = [
            subprocess.Popen(
                [*command, "--rank", str(rank)], env=environment, pass_fds=(fd,), text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for rank in range(size)
        ]  # fmt: skip
        os.close(fd)

    def run_round(self) -> list[tuple[int, int, list[float]]]:
        """Batch, context and the seconds of each step."""
        answer: list[tuple[int, int, list[float]]] = self._ask(self._ranks)
        return answer

    def measure_rates(self) -> dict[str, float]:
        """Behind the last round: the machine's."""
        answer: dict[str, float] = self._ask(self._ranks[:1])
        return answer

    def _ask(self, ranks: "list[subprocess.Popen[str]]") -> Any:  # noqa: ANN401
        """Has them do what is next; what rank 0 answers."""
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.write("\n")
            rank.stdin.flush()
        assert self._ranks[0].stdout is not None
        answer = self._ranks[0].stdout.readline()
        if not answer:
            sys.exit(f"{self.size} ranks: rank 0 ended with {self._ranks[0].wait()}")
        return json.loads(answer)

    def end(self) -> None:
        for rank in self._ranks:
            rank.communicate()


def run_rank(args: argparse.Namespace) -> None:
    """One rank of a group, in a process of its own; rank 0 prints what it measured."""
    from machine_rates import MachineRates
    from step_runner import StepRunner

    from albireo.gpu_worker.collectives.interface import Alone, Collectives
    from albireo.gpu_worker.collectives.shm import ShmCollectives

    group: Collectives = Alone()
    if args.size > 1:
        heartbeat = np.zeros(1, layout.WORKER_HEARTBEAT)
        group = ShmCollectives(args.fd, args.rank, args.size, heartbeat, time.monotonic_ns)
    dtype, steps = model_dtype(args.model), args.steps + WARM_UP_STEPS
    block_bytes = kv_bytes_per_block(read_checkpoint(args.model).model, BLOCK_SIZE, dtype)
    blocks = {
        (batch, context): batch * -(-(context + steps) // BLOCK_SIZE)
        for batch in args.batch
        for context in args.context
    }
    blocks = {key: count for key, count in blocks.items() if count * block_bytes <= args.kv_gib * 2**30}
    runner = StepRunner(
        args.model, dtype, max(args.batch), max(args.context) + steps, args.threads, False, time.perf_counter, group,
        num_blocks=max(blocks.values()),
    )  # fmt: skip
    for number, _ in enumerate(sys.stdin):
        if number == args.rounds:
            machine = MachineRates(256 * MIB, args.threads, time.perf_counter)
            bandwidth = max(machine.bytes_per_second(size * MIB) for size in (1, 16, 256))
            print(json.dumps({"flops": flops_per_second(dtype), "bandwidth": bandwidth}), flush=True)
            continue
        found = []
        for _ in range(ROUND_WARM_UPS):  # the other group has just had the cores
            runner.start(*next(iter(blocks)))
            for _ in range(steps):
                runner.step()
        for batch, context in blocks:
            runner.start(batch, context)
            times = [runner.step() for _ in range(steps)]
            found.append((batch, context, times[WARM_UP_STEPS:]))
        if not args.rank:
            print(json.dumps(found), flush=True)
            print(f"{args.size} ranks: round {number + 1} of {args.rounds}", file=sys.stderr)


def flops_per_second(dtype: Dtype) -> float:
    """The best of a few large products by torch, on its threads."""
    import torch

    x, weight = (torch.randn(size, 1024).to(getattr(torch, dtype)) for size in (512, 4096))
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        times.append(time.perf_counter() - begin)
    return 2 * x.shape[0] * weight.numel() / min(times)


def peak_spec(args: argparse.Namespace, dtype: Dtype, flops: float, bandwidth: float) -> DeviceSpec:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "a CPU",
    )
    return DeviceSpec(
        name="cpu",
        source=f"measured by tools/calibrate_cpu.py on {cpu}, {args.threads} threads a rank, {Path(args.model).name}; "
        f"power is not measured",
        flops=Flops(flops, flops if dtype == "float32" else flops / 2),  # of the other a guess
        memory_bandwidth=bandwidth,
        memory_bytes=memory_bytes,
        host_bandwidth=bandwidth / 2,
        link=Link(bandwidth / 2, 1e-6),
        efficiency=Efficiency(1.0, 1.0, 1.0, 1.0, 1.0),
        overhead=Overhead(0.0, 0.0, 0.0, 0.0),
        sampling=Sampling(0.0, 0.0),
        power=Power(0.0, 1.0),
    )


LOOSE: Final = 8.0
"""Caches can give more than a peak that was measured: the fit may go so far beyond."""


def loose(spec: DeviceSpec) -> DeviceSpec:
    return with_peaks(spec, LOOSE, LOOSE, LOOSE)


def with_peaks(spec: DeviceSpec, flops: float, bandwidth: float, link: float) -> DeviceSpec:
    """Peak rates times these."""
    return replace(
        spec,
        flops=Flops(spec.flops.bfloat16 * flops, spec.flops.float32 * flops),
        memory_bandwidth=spec.memory_bandwidth * bandwidth,
        link=replace(spec.link, bandwidth=spec.link.bandwidth * link),
    )


def within_peaks(fitted: DeviceSpec, peaks: DeviceSpec) -> DeviceSpec:
    """The same rates as `fitted`'s, as shares of `peaks`, which are raised where they were surpassed."""
    efficiency = fitted.efficiency
    flops = max(1.0, LOOSE * max(efficiency.flops, efficiency.attention_flops))
    bandwidth = max(1.0, LOOSE * max(efficiency.bandwidth, efficiency.attention_bandwidth))
    link = max(1.0, LOOSE * efficiency.link)

    def share(loose: float, raised: float) -> float:
        return max(0.001, min(1.0, loose * LOOSE / raised))

    shares = Efficiency(
        share(efficiency.flops, flops), share(efficiency.bandwidth, bandwidth),
        share(efficiency.attention_flops, flops), share(efficiency.attention_bandwidth, bandwidth),
        share(efficiency.link, link),
    )  # fmt: skip
    raised = with_peaks(peaks, flops, bandwidth, link)
    return replace(
        raised, efficiency=shares, overhead=fitted.overhead, sampling=fitted.sampling, contention=fitted.contention,
        link=replace(raised.link, latency_s=fitted.link.latency_s),
    )  # fmt: skip


def report(points: list[Measured], predicted: list[float]) -> None:
    """A line per point, and how many are within 15%."""
    print("| ranks | batch | context | measured ms | predicted ms | error |\n|--:|--:|--:|--:|--:|--:|")
    errors = []
    for point, seconds in zip(points, predicted, strict=True):
        errors.append(seconds / point.seconds - 1)
        print(
            f"| {point.num_ranks} | {point.batch} | {point.context} | {point.seconds * 1e3:.3f} | {seconds * 1e3:.3f} "
            f"| {errors[-1]:+.1%} |"
        )
    within = sum(abs(error) <= 0.15 for error in errors)
    print(
        f"\n{within} of {len(errors)} within 15%; mean of the errors' sizes "
        f"{statistics.mean(map(abs, errors)):.1%}, largest {max(map(abs, errors)):.1%}"
    )


if __name__ == "__main__":
    main()
