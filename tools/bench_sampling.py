"""The CPU sampler beside torch's sort-based one: time per token of the vocabulary, in one interleaved run.

    python tools/bench_sampling.py [--threads 1] [--vocab 8192 151936] [--batch 1 32 256] [--seconds 0.5]

Rows are `flat` (standard normal logits: hundreds of thousands of tokens matter, the hard case) or `peaked` (20 tokens
around 20, the rest normal with deviation 2.5: closer to what a trained model gives). Temperature 0.8 but for greedy.
Baseline: what an engine without kernels of its own runs (argmax; softmax and exponential noise; topk; for top-p a sort
of the vocabulary, cumulative sum, scatter). It does not take every row's parameters apart, ours does.
The fastest of all interleaved runs counts: other processes on the machine only ever add. With one thread the clock is
the thread's CPU time, which leaves out what they take; caches are as the other sampler left them.
"""

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from albireo.gpu_worker.sampling.cpu import CpuSampler
from albireo.gpu_worker.sampling.table import SamplingTable

MODES = {
    "greedy": (0.0, 1.0, 0),
    "temperature": (0.8, 1.0, 0),
    "top_k 50": (0.8, 1.0, 50),
    "top_p 0.95": (0.8, 0.95, 0),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def torch_sample(logits: torch.Tensor, temperature: float, top_p: float, top_k: int) -> torch.Tensor:
    """One token per row with stock torch operations, every row with the same parameters: int64 [n_rows]."""
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if top_k > 0:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p < 1.0:
        ordered, ids = logits.sort(dim=-1)
        outside = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - top_p
        outside[:, -1] = False
        logits = torch.empty_like(logits).scatter_(-1, ids, ordered.masked_fill(outside, -torch.inf))
    probabilities = logits.softmax(dim=-1)
    return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(dim=-1)


def make_logits(shape: str, batch: int, vocab: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, vocab, generator=generator)
    if shape == "peaked":
        logits *= 2.5
        ids = torch.randint(0, vocab, (batch, 20), generator=generator)
        logits.scatter_(1, ids, 20.0 + 3.0 * torch.randn(batch, 20, generator=generator))
    return logits


def fastest(candidates: list[Callable[[], object]], seconds: float) -> list[float]:
    """Seconds of each candidate's fastest run; they take turns for `seconds`, three times at least."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    best = [float("inf")] * len(candidates)
    begin = time.perf_counter()
    rounds = 0
    while rounds < 3 or time.perf_counter() - begin < seconds:
        for i, candidate in enumerate(candidates):
            start = clock()
            candidate()
            best[i] = min(best[i], clock() - start)
        rounds += 1
    return best


def bench(logits: torch.Tensor, mode: str, seconds: float) -> tuple[float, float]:
    """Seconds of our sampler and of torch's on one batch."""
    batch, vocab = logits.shape
    temperature, top_p, top_k = MODES[mode]
    table = SamplingTable(batch, max_model_len=1)
    table.temperature[:], table.top_p[:], table.top_k[:] = temperature, top_p, top_k
    table.seed[:] = range(batch)
    slots, out = torch.arange(batch, dtype=torch.int32), torch.empty(batch, dtype=torch.int32)
    positions = torch.zeros(batch, dtype=torch.int64)
    sampler = CpuSampler(vocab)
    sampler.warm_up(logits.dtype)

    def ours() -> None:
        positions.add_(1)  # a new draw every time, so that no branch is learned by heart
        sampler.sample(logits, slots, positions, table, out)

    first, second = fastest([ours, lambda: torch_sample(logits, temperature, top_p, top_k)], seconds)
    return first, second


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} logical cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 151936])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--shape", nargs="+", choices=["flat", "peaked"], default=["flat", "peaked"])
    parser.add_argument("--seconds", type=float, default=0.5, help="interleaved time per line")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print(f"`python {shlex.join(sys.argv)}`  ")
    print(f"{cpu_model()}, {args.threads} used; torch {torch.__version__}; ", end="")
    print(f"load average {os.getloadavg()[0]:.1f}\n")
    print("| vocab | batch | logits | rows | mode | ours, ns/token | torch, ns/token | ours, ms | torch, ms | ratio |")
    print("|--:|--:|---|---|---|--:|--:|--:|--:|--:|")
    for vocab in args.vocab:
        for batch in args.batch:
            for shape in args.shape:
                logits = make_logits(shape, batch, vocab)
                for dtype in args.dtype:
                    typed = logits.to(DTYPES[dtype])
                    for mode in MODES:
                        ours, theirs = bench(typed, mode, args.seconds)
                        per_token = [f"{seconds / (batch * vocab) * 1e9:.2f}" for seconds in (ours, theirs)]
                        millis = [f"{seconds * 1e3:.3f}" for seconds in (ours, theirs)]
                        cells = [vocab, batch, dtype, shape, mode, *per_token, *millis, f"{theirs / ours:.1f}"]
                        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
