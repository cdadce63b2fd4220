"""Sampling on t ranks: bytes received and CPU time per rank and step, by mode.

    python tools/bench_sampling_modes.py [--ranks 1 2 4] [--vocab 32000 151936] [--batch 1 32 256] [--dtype bfloat16]

Ranks are processes of one thread each, over the collectives that the engine uses. The time is the CPU time of a rank's
thread from the logits' share to all tokens, what it spends in collectives on copying included and waiting not, so that
ranks that share a core do not disturb it: the median of the steps, of the slowest rank. Rows are `peaked` as in
bench_sampling.py (20 likely tokens), or `flat`; positions differ from step to step. The share is of the rank's CPU time
for a whole decode step of the 0.6B shape, sampling included (`rank_step`).
"""

import argparse
import mmap
import multiprocessing
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from bench_sampling import DTYPES, cpu_model, make_logits
from numpy.typing import NDArray
from rank_step import RankStep

from albireo.checkpoint.shard import ModelShard, Span, shard_model
from albireo.checkpoint.structs import ModelConfig, RopeConfig
from albireo.config import SamplingMode
from albireo.gpu_worker.collectives.interface import Alone, Collectives
from albireo.gpu_worker.collectives.shm import ShmCollectives
from albireo.gpu_worker.sampling.arguments import kernel_element
from albireo.gpu_worker.sampling.decide_kernel import decide_kernel
from albireo.gpu_worker.sampling.local_kernels import share_kernel
from albireo.gpu_worker.sampling.modes import make_step_sampler
from albireo.gpu_worker.sampling.row_kernel import row_kernel
from albireo.gpu_worker.sampling.table import SamplingTable
from albireo.shm import layout
from albireo.shm.collective_segment import CollectiveSegment

Floats = NDArray[np.float64]
MODES: tuple[SamplingMode, ...] = ("gathered", "sequence-parallel", "local")
ROWS = {"greedy": (0.0, 1.0), "temperature 0.8, top_p 0.95": (0.8, 0.95)}
STEPS = {1: 300, 32: 40, 256: 8}
WARM_UP_STEPS = 2


def vocab_shard(vocab_size: int, rank: int, size: int) -> ModelShard:
    config = ModelConfig(
        architecture="LlamaForCausalLM", vocab_size=vocab_size, hidden_size=8, intermediate_size=8, num_layers=1,
        num_heads=size, num_kv_heads=size, head_dim=2, rms_norm_eps=1e-6, rope=RopeConfig(),
        max_position_embeddings=8, tie_word_embeddings=True, qkv_bias=False, o_bias=False, mlp_bias=False,
        qk_norm=False, sliding_windows=(None,), dtype="float32", eos_token_ids=(0,), bos_token_id=None,
    )  # fmt: skip
    return shard_model(config, rank, size)


def share_of(logits: torch.Tensor, share: Span) -> torch.Tensor:
    part = torch.zeros((len(logits), share.width), dtype=logits.dtype)
    part[:, : share.size] = logits[:, share.slice]
    return part


def make_table(batch: int, temperature: float, top_p: float) -> SamplingTable:
    table = SamplingTable(batch, max_model_len=1)
    table.temperature[:], table.top_p[:] = temperature, top_p
    table.seed[:] = range(batch)
    return table


def measure(
    mode: SamplingMode, rows: str, logits: torch.Tensor, vocab_size: int, shard: ModelShard, collectives: Collectives
) -> tuple[float, float]:
    """(bytes received per step, median seconds of CPU) on this rank."""
    batch = len(logits)
    table = make_table(batch, *ROWS[rows])
    sampler = make_step_sampler(mode, shard, vocab_size, collectives, table, logits.dtype)
    slots = np.arange(batch, dtype=np.int32)
    sampling_slice = -(-batch // shard.size) if mode == "sequence-parallel" else 0
    steps = STEPS.get(batch, 20)
    seconds = []
    for step in range(steps + WARM_UP_STEPS):
        if step == WARM_UP_STEPS:
            before = collectives.received_bytes
        begin = time.thread_time()
        sampler.sample(logits, slots, np.full(batch, step, np.int64), sampling_slice)
        seconds.append(time.thread_time() - begin)
    return (collectives.received_bytes - before) / steps, float(np.median(seconds[WARM_UP_STEPS:]))


def join_group(rank: int, size: int, segment_fd: int) -> Collectives:
    if size == 1:
        return Alone()
    heartbeat: NDArray[Any] = np.zeros(1, layout.WORKER_HEARTBEAT)
    return ShmCollectives(segment_fd, rank, size, heartbeat, time.monotonic_ns)


def sample_steps(collectives: Collectives, logits: torch.Tensor) -> NDArray[np.float64]:
    """This rank's [modes, rows, (bytes, seconds)]."""
    vocab_size = logits.shape[1]
    shard = vocab_shard(vocab_size, collectives.rank, collectives.size)
    share = share_of(logits, shard.vocab)
    return np.array([[measure(mode, rows, share, vocab_size, shard, collectives) for rows in ROWS] for mode in MODES])


def run_group(size: int, work: Callable[[Collectives], NDArray[np.float64]], shape: tuple[int, ...]) -> Floats:
    """`work` in `size` processes; what they return, of this shape, as [size, *shape]. Raises RuntimeError where one
    fails."""
    geometry = CollectiveSegment(size)
    segment_fd = os.memfd_create("bench-collectives")
    os.ftruncate(segment_fd, geometry.size)
    geometry.initialise(segment_fd)
    shared = mmap.mmap(-1, size * int(np.prod(shape)) * 8)
    results = np.frombuffer(shared, np.float64).reshape(size, *shape)

    def run_rank(rank: int) -> None:
        collectives = join_group(rank, size, segment_fd)
        results[rank] = work(collectives)
        collectives.close()

    context = multiprocessing.get_context("fork")
    ranks: list[BaseProcess] = [context.Process(target=run_rank, args=(rank,)) for rank in range(size)]
    for process in ranks:
        process.start()
    try:
        while any(process.is_alive() for process in ranks):
            if any(process.exitcode for process in ranks):
                raise RuntimeError("a rank failed")
            time.sleep(0.02)
        if any(process.exitcode for process in ranks):
            raise RuntimeError("a rank failed")
    finally:
        for process in ranks:
            process.kill()
        os.close(segment_fd)
    return results.copy()


def model_seconds(size: int, vocab_size: int, batches: list[int]) -> dict[int, float]:
    """CPU seconds of a decode step without sampling, of the slowest rank, by batch."""

    def work(collectives: Collectives) -> NDArray[np.float64]:
        step = RankStep(vocab_size, collectives)
        return np.array([step.seconds(batch) for batch in batches])

    return dict(zip(batches, run_group(size, work, (len(batches),)).max(axis=0).tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--vocab", type=int, nargs="+", default=[32_000, 151_936])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--shape", choices=["flat", "peaked"], default="peaked")
    args = parser.parse_args()
    # one thread each; the parent must not start a team either, since processes that are forked would lack its threads
    torch.set_num_threads(1)
    for kernel in (row_kernel, share_kernel):
        kernel(kernel_element(DTYPES[args.dtype]))
    decide_kernel()

    print(f"`python {shlex.join(sys.argv)}`  ")
    print(f"{cpu_model()}; {platform.system()}; torch {torch.__version__}; load average {os.getloadavg()[0]:.1f}\n")
    heads = [f"t = {t}, bytes | ms | share" for t in args.ranks]
    print("| vocab | batch | rows | mode | " + " | ".join(heads) + " |")
    print("|--:|--:|---|---|" + "--:|--:|--:|" * len(args.ranks))
    for vocab in args.vocab:
        models = [model_seconds(size, vocab, args.batch) for size in args.ranks]
        for batch in args.batch:
            logits = make_logits(args.shape, batch, vocab).to(DTYPES[args.dtype])
            shape = (len(MODES), len(ROWS), 2)
            outcomes = [run_group(size, partial(sample_steps, logits=logits), shape).max(axis=0) for size in args.ranks]
            for k, rows in enumerate(ROWS):
                for m, mode in enumerate(MODES):
                    cells = [
                        f"{o[m, k, 0]:,.0f} | {o[m, k, 1] * 1e3:.3f} | {o[m, k, 1] / (o[m, k, 1] + model[batch]):.1%}"
                        for o, model in zip(outcomes, models, strict=True)
                    ]
                    print(f"| {vocab} | {batch} | {rows} | {mode} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
