#!/usr/bin/env python3
"""Time attention on the CPU, what ships against what it was chosen over, and print markdown; under five minutes.

usage: bench_attention.py [--threads N] [--only decode|chunk|layers|start] [--seconds 3]

Decode steps and prompt chunks have the shape of Qwen3-0.6B (16 query and 8 key/value heads of 128, bf16), pages of 16
tokens in random order. The ways take turns within one run, since a machine's speed drifts; figures are medians. With
one thread the clock is the thread's CPU time, which other programs hardly disturb; with more it is the wall clock.

`layers` is attention in turns with the linear layers around it, in processes of their own, since it depends on their
environment; `start` is the time to compile the kernels, and to load them.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

import attention_candidates as candidates
import torch
from attention_candidates import SCALE, Pages, Run
from torch import Tensor

from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.cpu import CpuAttention
from albireo.gpu_worker.launch_env import worker_environment

Clock = Callable[[], float]
NUM_HEADS: Final = 16
NUM_KV_HEADS: Final = 8
HEAD_DIM: Final = 128
BLOCK_SIZE: Final = 16
POOL_BLOCKS: Final = 8192
"""512 MiB of pages, more than any cache; sequences share blocks when they would need more."""
MAX_COPY_BYTES: Final = 2 << 30
"""Ways that copy the pages, or take seconds, are left out beyond."""
DECODES: Final = [(batch, context) for batch in (1, 32, 256) for context in (128, 1024, 8192)]
CHUNKS: Final = [(16, 528), (128, 128), (512, 512), (2048, 2048), (64, 8192), (2048, 8192)]
"""New tokens, and context including them."""


def make_batch(pages: Pages, query_len: int) -> AttentionBatch:
    """A step of all sequences of `pages`, with `query_len` query tokens each."""
    num_seqs, context = len(pages.block_table), pages.context
    return AttentionBatch(
        block_table=pages.block_table,
        slots=torch.arange(num_seqs, dtype=torch.int32),
        query_start=torch.arange(0, num_seqs * query_len + 1, query_len, dtype=torch.int32),
        seq_lens=torch.full((num_seqs,), context, dtype=torch.int32),
        slot_mapping=torch.full((num_seqs * query_len,), -1),
        num_decodes=num_seqs if query_len == 1 else 0,
        max_query_len=query_len,
        max_seq_len=context,
    )


def make_pages(batch: int, context: int, contiguous: bool = False) -> Pages:
    """Random pages; blocks in random order, or each sequence's one after the other."""
    shape = (POOL_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    torch.manual_seed(0)
    per_sequence = context // BLOCK_SIZE
    if contiguous:
        firsts = torch.arange(batch) * per_sequence % (POOL_BLOCKS - per_sequence + 1)
        table = firsts[:, None] + torch.arange(per_sequence)
    else:
        rounds = -(-batch * per_sequence // POOL_BLOCKS)
        blocks = torch.cat([torch.randperm(POOL_BLOCKS) for _ in range(rounds)])
        table = blocks[: batch * per_sequence].view(batch, per_sequence)
    return Pages(*_pool(shape), table.int().contiguous())


@cache
def _pool(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.empty(shape, dtype=torch.bfloat16).normal_(generator=generator) for _ in range(2))
    return k, v


def shipped(attention: CpuAttention, q: Tensor, pages: Pages, query_len: int) -> Run:
    """`CpuAttention` on q [num_tokens, num_heads, head_dim]."""
    batch, out = make_batch(pages, query_len), torch.empty_like(q)
    return lambda: attention.attend(q, pages.k_cache, pages.v_cache, batch, SCALE, None, out)


def median_times(ways: dict[str, Run], clock: Clock, seconds: float) -> dict[str, float]:
    """Seconds per call of each way, in turns: once to warm up, then until `seconds` are over, at least three times."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()
    end = time.monotonic() + seconds
    while min(map(len, times.values())) < 3 or time.monotonic() < end:
        for name, run in ways.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def decode_table(threads: int, clock: Clock, seconds: float, with_compile: bool) -> None:
    attention = CpuAttention(torch.bfloat16, threads)
    names = ["gather + SDPA", "torch.compile", "flash, one run", "flash, run per page", "plain numba"]
    print("## Decode: one query token per sequence\n")
    print("ms for Albireo, with the bytes of keys and values it reads per second; for the others, times slower.\n")
    print_row(["batch x context", "Albireo", "GB/s", *names])
    print_row(["---"] * (3 + len(names)))
    for batch, context in DECODES:
        pages, runs = make_pages(batch, context), make_pages(batch, context, contiguous=True)
        q = torch.randn(batch, NUM_HEADS, HEAD_DIM).bfloat16()
        num_bytes = 4 * batch * context * NUM_KV_HEADS * HEAD_DIM
        ways: dict[str, Run] = {"Albireo": shipped(attention, q, pages, 1)}
        if num_bytes <= MAX_COPY_BYTES:
            ways["gather + SDPA"] = candidates.gather_sdpa(q, pages)
            ways["plain numba"] = candidates.plain_numba(q, pages)
            if with_compile:
                ways["torch.compile"] = candidates.compiled(q, pages)
            ways["flash, one run"] = candidates.flash_per_run(q, runs, context // BLOCK_SIZE)
        if batch * context <= 8192:
            ways["flash, run per page"] = candidates.flash_per_run(q, pages, 1)
        times = median_times(ways, clock, seconds)
        ours = times["Albireo"]
        ratios = [f"{times[name] / ours:.1f}" if name in times else "" for name in names]
        print_row([f"{batch} x {context}", milliseconds(ours), f"{num_bytes / ours / 1e9:.1f}", *ratios])


def chunk_table(threads: int, clock: Clock, seconds: float) -> None:
    attention = CpuAttention(torch.bfloat16, threads)
    names = ["gather + SDPA, masked", "gather + flash, joined"]
    print("\n## Prompt chunks: causal, of one sequence\n")
    print("ms and arithmetic of the visible part for Albireo; for the others, times slower.\n")
    print_row(["tokens of context", "Albireo", "GFLOP/s", *names])
    print_row(["---"] * (3 + len(names)))
    for num_tokens, context in CHUNKS:
        pages = make_pages(1, context)
        q = torch.randn(num_tokens, NUM_HEADS, HEAD_DIM).bfloat16()
        ways = {"Albireo": shipped(attention, q, pages, num_tokens)}
        ways[names[0]] = candidates.chunk_gather_masked(q, pages)
        ways[names[1]] = candidates.chunk_gather_joined(q, pages)
        times = median_times(ways, clock, seconds)
        ours = times["Albireo"]
        visible = num_tokens * (context - num_tokens) + num_tokens * (num_tokens + 1) // 2
        flops = 4 * NUM_HEADS * HEAD_DIM * visible
        ratios = [f"{times[name] / ours:.1f}" for name in names]
        print_row([f"{num_tokens} of {context}", milliseconds(ours), f"{flops / ours / 1e9:.0f}", *ratios])


def layer_settings(threads: int) -> dict[str, tuple[str, dict[str, str]]]:
    """Per label, the attention and the environment of a process that runs layers."""
    torch_runtime = str(Path(torch.__file__).parent / "lib" / "libgomp.so.1")
    ours = worker_environment(threads)
    plain = {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    return {
        "none; worker_environment()": ("none", ours),
        "Albireo; worker_environment()": ("albireo", ours),
        "Albireo; torch's defaults": ("albireo", plain),
        "Albireo; OMP_WAIT_POLICY=passive": ("albireo", {**plain, "OMP_WAIT_POLICY": "passive"}),
        "plain numba; torch's and numba's defaults": ("numba", plain),
        "plain numba; one runtime for both by LD_PRELOAD": ("numba", {**plain, "LD_PRELOAD": torch_runtime}),
        "plain numba; worker_environment()": ("numba", ours),
    }


def layers_table(threads: int) -> None:
    print("\n## A step of layers: attention in turns with products\n")
    print("8 layers of the tiny model (hidden 256, 8/4 heads of 64), 32 sequences at 128 tokens, pages of 16. ms.\n")
    print_row(["attention; environment", "step", "CPU time of a step"])
    print_row(["---"] * 3)
    results: dict[str, list[list[float]]] = {}
    for _ in range(3):
        for label, (attention, environment) in layer_settings(threads).items():
            clean = {key: value for key, value in os.environ.items() if key not in worker_environment(1)}
            command = [sys.executable, str(Path(__file__).with_name("bench_attention_layers.py")), attention]
            output = subprocess.run(command, env={**clean, **environment}, check=True, capture_output=True).stdout
            results.setdefault(label, []).append(json.loads(output))
    for label, runs in results.items():
        print_row([label, *(milliseconds(statistics.median(column)) for column in zip(*runs, strict=True))])


def start_table() -> None:
    program = (
        "import time, torch; start = time.monotonic(); from albireo.gpu_worker.attention.cpu import CpuAttention; "
        "imported = time.monotonic(); CpuAttention(torch.bfloat16, 1); "
        "print(imported - start, time.monotonic() - imported)"
    )
    print("\n## Start, seconds\n")
    print_row(["", "import (with numba, without torch)", "kernels"])
    print_row(["---"] * 3)
    with tempfile.TemporaryDirectory() as folder:
        for label in ("first start: compile", "later: load"):
            environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
            command = [sys.executable, "-c", program]
            output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            print_row([label, *(f"{float(value):.2f}" for value in output.split())])


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def print_row(cells: list[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def print_machine(threads: int) -> None:
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    clock = "CPU time of the thread" if threads == 1 else "wall clock"
    print(f"{datetime.date.today()}, {len(models)} x {models[0]}, load average {load}; {threads} threads, {clock}.")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, numba {version('numba')}.\n")
    print(f"    python tools/bench_attention.py {' '.join(sys.argv[1:])}\n")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=["decode", "chunk", "layers", "start"])
    parser.add_argument("--seconds", type=float, default=3.0, help="per row of the first two tables")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it needs a C++ compiler")
    args = parser.parse_args()
    environment = worker_environment(args.threads)
    if any(os.environ.get(key) != value for key, value in environment.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment})
    torch.set_num_threads(args.threads)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    print_machine(args.threads)
    if args.only in {None, "decode"}:
        decode_table(args.threads, clock, args.seconds, not args.no_compile)
    if args.only in {None, "chunk"}:
        chunk_table(args.threads, clock, args.seconds)
    if args.only in {None, "layers"}:
        layers_table(args.threads)
    if args.only in {None, "start"}:
        start_table()


if __name__ == "__main__":
    main()
