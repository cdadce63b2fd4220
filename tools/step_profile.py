#!/usr/bin/env python3
"""Where a decode step of a checkpoint goes, part by part, and how far it is from what the machine can do.

    python tools/step_profile.py MODEL [--batch 1 8 32 256] [--context 192] [--threads N] [--steps 10]

One process, the real CpuDevice, its steps planned by hand: `batch` sequences of `context` tokens, blocks in random
order, temperature 0.8 and top-p 0.95 unless --greedy. Steps run in turns as they are, with kernels called one by one
from Python instead of in a captured program, and so with a stopwatch around each part: `step` is of the first kind,
parts and their shares of the last (medians). `python between` is what no part claims.

The floor is the longer of two times: for reading the weights and the sequences' KV once, at the rate of a plain read
kernel over as many bytes, and for the arithmetic, at the rate of a large packed bf16 product; both are measured
between the steps. With one thread the clock is its CPU time, with more it is the wall clock.
"""

import argparse
import math
import os
import statistics
import sys
from pathlib import Path

from machine_rates import MachineRates, clock_for
from step_runner import StepRunner
from step_stopwatch import Stopwatch, without_programs

from albireo.checkpoint import read_checkpoint
from albireo.checkpoint.structs import ModelConfig, kv_bytes_per_block
from albireo.checkpoint.weight_shapes import weight_shapes
from albireo.config import Dtype
from albireo.gpu_worker.launch_env import worker_environment

WARM_UP_STEPS = 2


def step_bytes(model: ModelConfig, dtype: Dtype, batch: int, context: int) -> int:
    """Bytes that a step has to read: every weight but the rows of the embedding table that nobody asks for, and KV."""
    shapes = weight_shapes(model)
    if not model.tie_word_embeddings:
        del shapes["model.embed_tokens.weight"]
    elements = sum(math.prod(shape) for shape in shapes.values())
    return elements * (4 if dtype == "float32" else 2) + batch * context * kv_bytes_per_block(model, 1, dtype)


def step_flops(model: ModelConfig, batch: int, context: int) -> int:
    """Multiplications and additions of a step's products and its attention."""
    shapes = [shape for shape in weight_shapes(model).values() if len(shape) == 2]
    if not model.tie_word_embeddings:
        shapes = shapes[1:]  # the embedding table is looked up, not multiplied
    attention = 2 * model.num_layers * model.num_heads * model.head_dim * context
    return 2 * batch * (sum(rows * columns for rows, columns in shapes) + attention)


class StepTimes:
    """Seconds: of plain steps, and by part of steps under the stopwatch."""

    def __init__(self, runner: StepRunner, stopwatch: Stopwatch, batch: int, context: int, steps: int) -> None:
        runner.start(batch, context)
        plain, apart, parts = [], [], []
        for _ in range(WARM_UP_STEPS):
            runner.step()
        for _ in range(steps):
            plain.append(runner.step())
            with without_programs(runner.device):
                apart.append(runner.step())
            with stopwatch:
                total = runner.step()
            parts.append({**stopwatch.seconds, "python between": total - sum(stopwatch.seconds.values())})
        self.step = statistics.median(plain)
        self.least = min(plain)
        self.apart = statistics.median(apart)
        self.parts = {part: statistics.median(times[part] for times in parts) for part in parts[0]}


def profile(args: argparse.Namespace, dtype: Dtype) -> dict[int, dict[str, str]]:
    """Per batch size, the table's column by row label."""
    model, clock = read_checkpoint(args.model).model, clock_for(args.threads)
    most_steps = 3 * args.steps + WARM_UP_STEPS
    runner = StepRunner(args.model, dtype, max(args.batch), args.context + most_steps, args.threads, args.greedy, clock)
    stopwatch = Stopwatch(runner.device, clock)
    rates = MachineRates(step_bytes(model, dtype, max(args.batch), args.context), args.threads, clock)
    columns = {}
    for batch in args.batch:
        nbytes, flops = step_bytes(model, dtype, batch, args.context), step_flops(model, batch, args.context)
        bandwidth, rate = rates.bytes_per_second(nbytes), rates.flops_per_second()
        times = StepTimes(runner, stopwatch, batch, args.context, args.steps)
        bandwidth, rate = max(bandwidth, rates.bytes_per_second(nbytes)), max(rate, rates.flops_per_second())
        floor = max(nbytes / bandwidth, flops / rate)
        measured = sum(times.parts.values())
        columns[batch] = {
            "**step**": f"{times.step * 1e3:.2f} ({times.least * 1e3:.2f})",
            "kernels called one by one": f"{times.apart * 1e3:.2f}",
            **{part: f"{times.parts[part] * 1e3:.3f}, {times.parts[part] / measured:.1%}" for part in times.parts},
            "reading": f"{nbytes / 1e6:.0f} MB at {bandwidth / 1e9:.1f} GB/s: {nbytes / bandwidth * 1e3:.2f}",
            "arithmetic": f"{flops / 1e9:.2f} GFLOP at {rate / 1e9:.0f} GFLOP/s: {flops / rate * 1e3:.2f}",
            "**step / floor**": f"{times.step / floor:.2f} ({times.least / floor:.2f})",
        }
    return columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 256])
    parser.add_argument("--context", type=int, default=128 + 64, help="tokens of each sequence at the first step")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=10, help="of each kind")
    parser.add_argument("--greedy", action="store_true")
    args = parser.parse_args()
    environment = worker_environment(args.threads)
    if any(os.environ.get(key) != value for key, value in environment.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment})
    dtype: Dtype = "float32" if read_checkpoint(args.model).model.dtype == "float32" else "bfloat16"
    columns = profile(args, dtype)
    clock = "CPU time of the thread" if args.threads == 1 else "wall clock"
    print(
        f"{Path(args.model).name}, {dtype}, contexts of {args.context}, {args.threads} threads, {clock}; ms, shares\n"
    )
    print("| ms | " + " | ".join(f"batch {batch}" for batch in columns) + " |")
    print("|---|" + "--:|" * len(columns))
    first = next(iter(columns.values()))
    for label in first:
        print(f"| {label} | " + " | ".join(column[label] for column in columns.values()) + " |")


if __name__ == "__main__":
    main()
