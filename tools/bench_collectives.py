#!/usr/bin/env python3
"""Time collectives between rank processes, shared memory and gloo in turns, and print markdown; under two minutes.

usage: bench_collectives.py [--seconds 0.5] [--spin N] [--shared-bytes N] [--buffer-bytes N] [--only shm|gloo]

Microseconds per operation as rank 0 sees them, the median over batches; the ways take turns within one run, since a
machine's speed drifts. Beside it the CPU time of rank 0 per operation: what a rank that waits takes from the others.
"""

import argparse
import datetime
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import torch

from albireo.gpu_worker.collectives import shm, shm_kernels
from albireo.gpu_worker.collectives.gloo import TorchCollectives
from albireo.gpu_worker.collectives.interface import Collectives
from albireo.shm import layout, segment
from albireo.shm.collective_segment import BUFFER_BYTES, CollectiveSegment

HIDDEN: Final = 1024
ROUNDS: Final = 5
CASES: Final = [
    ("all-reduce, 2 KB (1 row)", "all_reduce", 1),
    ("all-reduce, 64 KB (32 rows)", "all_reduce", 32),
    ("all-reduce, 4 MB (2048 rows)", "all_reduce", 2048),
    ("all-gather, 1 KB of each rank", "all_gather", 0),
]


def operation(group: Collectives, name: str, rows: int) -> Callable[[], object]:
    """One call of a case; zeros, which stay zeros when they are added up in place."""
    if name == "all_gather":
        return partial(group.all_gather, torch.zeros(1024, dtype=torch.uint8))
    hidden = torch.zeros(rows, HIDDEN, dtype=torch.bfloat16)
    return partial(group.all_reduce, hidden, torch.zeros_like(hidden))


def measure(run: Callable[[], object], group: Collectives, seconds: float) -> tuple[float, float]:
    """Microseconds of an operation, wall clock and CPU. Ranks agree on the number of calls: the slowest's."""
    begin = time.perf_counter()
    for _ in range(5):
        run()
    each = torch.tensor([(time.perf_counter() - begin) / 5])
    calls = max(5, int(seconds / float(group.all_gather(each).max())))
    begin, cpu_begin = time.perf_counter(), time.process_time()
    for _ in range(calls):
        run()
    return (time.perf_counter() - begin) / calls * 1e6, (time.process_time() - cpu_begin) / calls * 1e6


def run_rank(rank: int, size: int, fd: int, gloo_file: Path, args: argparse.Namespace) -> None:
    heartbeat = np.zeros(1, layout.WORKER_HEARTBEAT)
    groups: dict[str, Collectives] = {}
    if args.only != "gloo":
        groups["shm"] = shm.ShmCollectives(fd, rank, size, heartbeat, time.monotonic_ns, args.spin, args.shared_bytes)
    if args.only != "shm":
        groups["gloo"] = TorchCollectives("gloo", gloo_file, rank, size, heartbeat, time.monotonic_ns)
    for label, name, rows in CASES:
        figures: dict[str, list[tuple[float, float]]] = {key: [] for key in groups}
        for _ in range(ROUNDS):
            for key, group in groups.items():
                figures[key].append(measure(operation(group, name, rows), group, args.seconds / ROUNDS))
        if rank == 0:
            cells = [
                f"{statistics.median(wall for wall, _ in each):.0f} | {statistics.median(cpu for _, cpu in each):.0f}"
                for each in figures.values()
            ]
            print(f"| {size} | {label} | {' | '.join(cells)} |", flush=True)


def bench_group(size: int, args: argparse.Namespace) -> None:
    """Forks ranks 1.. of a group, is rank 0, and prints the group's lines. The kernels are compiled before."""
    geometry = CollectiveSegment(size, args.buffer_bytes)
    fd = segment.create("collectives", geometry.size)
    geometry.initialise(fd)
    with tempfile.TemporaryDirectory() as folder:
        gloo_file = Path(folder) / "meeting"
        children = []
        for rank in range(1, size):
            pid = os.fork()
            if pid == 0:
                run_rank(rank, size, fd, gloo_file, args)
                os._exit(0)
            children.append(pid)
        # rank 0 too is a fork: torch.distributed has one group per process
        pid = os.fork()
        if pid == 0:
            run_rank(0, size, fd, gloo_file, args)
            os._exit(0)
        for child in [*children, pid]:
            os.waitpid(child, 0)
    os.close(fd)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="per case and way")
    parser.add_argument("--spin", type=int, default=None, help="looks at the barrier before sleeping")
    parser.add_argument("--shared-bytes", type=int, default=shm.SHARED_BYTES)
    parser.add_argument("--buffer-bytes", type=int, default=BUFFER_BYTES)
    parser.add_argument("--only", choices=["shm", "gloo"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    shm_kernels.move_kernel()
    for element in (np.uint16, np.float32):
        shm_kernels.sum_kernel(element)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    print(
        f"{datetime.date.today()}, {os.cpu_count()} x {cpu.split(': ')[1]}, load average {load}; one thread per rank."
    )
    print(f"Python {platform.python_version()}, torch {version('torch')}, numba {version('numba')}.")
    print(f"\n    python {' '.join(sys.argv)}\n")
    ways = [way for way in ("shm", "gloo") if args.only in (None, way)]
    print(f"| t | operation | {' | '.join(f'{way}, us | {way}, us CPU' for way in ways)} |")
    print(f"| --- | --- |{' --- | --- |' * len(ways)}", flush=True)
    for size in (2, 4):
        bench_group(size, args)


if __name__ == "__main__":
    main()
