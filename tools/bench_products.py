#!/usr/bin/env python3
"""Time all matrix products of a decode step in bf16: as torch does them, packed for oneDNN, and as Albireo does them.

usage: bench_products.py [--shape tiny|0.6b] [--rows 1,4,8,32,128] [--threads 1] [--repeats 20]

The three take turns within one run, since a machine's speed drifts. With one thread the clock is the thread's CPU
time, which other programs on the machine hardly disturb; with more it is the wall clock, which they ruin.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from albireo.gpu_worker.layers import make_linear

SHAPES = {
    "tiny": ([(1024, 256), (256, 512), (2048, 256), (256, 1024)], 8, (8192, 256)),
    "0.6b": ([(4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)], 28, (151_936, 1024)),
}
"""(out_features, in_features) of a layer's products, number of layers, the head's."""


def products(shape: str) -> dict[str, Callable[[dict[int, Tensor]], None]]:
    """Per way of computing them, a function of one input per in_features that runs all products of a step."""
    layer, num_layers, head = SHAPES[shape]
    weights = [torch.randn(size).to(torch.bfloat16) for size in [*layer * num_layers, head]]
    packed = [(weight.shape[1], torch.ops.mkldnn._reorder_linear_weight(weight)) for weight in weights]
    linears = [(weight.shape[1], make_linear(weight)) for weight in weights]

    def plain(inputs: dict[int, Tensor]) -> None:
        for weight in weights:
            functional.linear(inputs[weight.shape[1]], weight)

    def one_dnn(inputs: dict[int, Tensor]) -> None:
        for in_features, weight in packed:
            torch.ops.mkldnn._linear_pointwise(inputs[in_features], weight, None, "none", [], "")

    def ours(inputs: dict[int, Tensor]) -> None:
        for in_features, linear in linears:
            linear(inputs[in_features])

    return {"F.linear": plain, "oneDNN packed": one_dnn, "Albireo": ours}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--rows", default="1,4,8,32,128")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    ways = products(args.shape)
    print(f"{args.shape}, {args.threads} threads, ms per step, median (least) of {args.repeats}")
    print("| rows | " + " | ".join(ways) + " |")
    print("|---|" + "---|" * len(ways))
    for rows in map(int, args.rows.split(",")):
        inputs = {size[1]: torch.randn(rows, size[1]).to(torch.bfloat16) for size in [*SHAPES[args.shape][0]]}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeats + 1):
            for name, run in ways.items():
                start = clock()
                run(inputs)
                times[name].append((clock() - start) * 1e3)
        cells = [f"{statistics.median(values[1:]):.2f} ({min(values[1:]):.2f})" for values in times.values()]
        print(f"| {rows} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
