#!/usr/bin/env python3
"""Time the GPU's sampler under CUDA graph replay, and check a few rows of it against the definition.

usage: bench_cuda_sampling.py [--vocab 128256] [--batch 1 64 256] [--ms 20] [--flat]

"grammar": every row takes its mask over the bus; all the others have none, and "no masks" is "greedy" of a sampler that
serves no grammars.

Microseconds per call in bf16. Rows are like a trained model's: 20 tokens around 20, the rest normal with deviation
2.5; --flat: standard normal, of which half the vocabulary matters. Beside it: torch.argmax, and what an engine without
kernels of its own runs for top_p (a sort, a cumulative sum, a scatter, softmax, exponential noise, argmax).
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from albireo.gpu_worker.cuda.row_masks import SharedMasks
from albireo.gpu_worker.cuda.sampler import CudaSampler
from albireo.gpu_worker.sampling.oracle import OracleSampler
from albireo.gpu_worker.sampling.table import SamplingTable
from albireo.shm.grammar_masks import mask_tag, mask_words
from albireo.shm.layout import ADMISSION

MODES: Final[dict[str, dict[str, float]]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top_p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "top_k 50": {"temperature": 0.8, "top_k": 50},
    "k 20, p 0.95": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    "penalties": {"temperature": 0.8, "repetition_penalty": 1.1, "frequency_penalty": 0.5},
    "grammar": {"has_grammar": 1},
}
NUM_SEEN: Final = 500
"""Distinct tokens of a sequence under penalties."""
NUM_CHECKED: Final = 8


def microseconds(call: Callable[[], object], ms: float) -> float:
    """Per call, of a graph of one call, replayed for about `ms`."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        call()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    count = 3
    for _ in range(2):
        begin.record()
        for _ in range(count):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        took = begin.elapsed_time(end)
        if count == 3:
            count = max(3, int(ms * 3 / took))
    return float(1e3 * took / count)


def make_entries(n: int, mode: dict[str, float]) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """`layout.ADMISSION` [n] of the mode, and their extras."""
    entries = np.zeros(n, ADMISSION)
    entries["slot"], entries["seed"] = np.arange(n), np.arange(n) + 1
    entries["top_p"] = entries["repetition_penalty"] = 1.0
    for name, value in mode.items():
        entries[name] = value
    if "repetition_penalty" not in mode:
        return entries, np.zeros(0, np.int32)
    entries["num_seen"] = NUM_SEEN
    return entries, np.concatenate([np.arange(NUM_SEEN), np.full(NUM_SEEN, 3)]).astype(np.int32)


def make_logits(n: int, vocab: int, is_flat: bool) -> Tensor:
    generator = torch.Generator(device="cuda").manual_seed(n)
    logits = torch.randn(n, vocab, device="cuda", generator=generator)
    if not is_flat:
        logits *= 2.5
        likely = torch.randint(0, vocab, (n, 20), device="cuda", generator=generator)
        logits.scatter_(1, likely, 20 + 2 * torch.randn(n, 20, device="cuda", generator=generator))
    return logits.bfloat16()


def make_masks(n: int, vocab: int) -> SharedMasks:
    """Every slot's mask of position 100 + slot, generation 0: even tokens may come."""
    tags = torch.tensor([mask_tag(0, 100 + slot) for slot in range(n)]).pin_memory()
    words = torch.full((n, -(-mask_words(vocab) // 16) * 16), 0x55555555, dtype=torch.int32).pin_memory()
    return SharedMasks(tags, words)


def torch_top_p(logits: Tensor) -> Tensor:
    values, order = (logits.float() / 0.8).sort(dim=-1, descending=True)
    shares = values.softmax(dim=-1)
    shares.masked_fill_(shares.cumsum(dim=-1) - shares >= 0.95, 0.0)
    whole = torch.empty_like(shares).scatter_(1, order, shares)
    return (whole / torch.empty_like(whole).exponential_()).argmax(dim=-1)


def is_exact(logits: Tensor, entries: NDArray[Any], positions: Tensor, tokens: Tensor) -> bool:
    """The first rows' tokens against the definition's; rows that are adjusted are left to the tests."""
    n = min(NUM_CHECKED, len(tokens))
    table = SamplingTable(n, 1)
    for name in ("temperature", "top_p", "min_p", "top_k"):
        getattr(table, name)[:] = entries[name][:n]
    table.seed[:] = entries["seed"][:n].astype(np.int64)
    expected, slots = torch.empty(n, dtype=torch.int32), torch.arange(n, dtype=torch.int32)
    OracleSampler().sample(logits[:n].cpu(), slots, positions[:n].cpu().long(), table, expected)
    return torch.equal(expected, tokens[:n].cpu())


def is_best_of_the_even(logits: Tensor, tokens: Tensor) -> bool:
    """Of `make_masks`, greedily; any of several that tie."""
    values, chosen = logits.float(), tokens[:, None].long()
    best = values[:, ::2].max(dim=1, keepdim=True).values
    return bool((chosen % 2 == 0).all()) and torch.equal(values.gather(1, chosen), best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--ms", type=float, default=20.0)
    parser.add_argument("--flat", action="store_true")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_cuda_sampling: needs a CUDA device")
    print(f"{torch.cuda.get_device_name()}; torch {torch.__version__}; microseconds per call")
    print(f"{'batch':>5} " + " ".join(f"{name:>13}" for name in [*MODES, "no masks", "torch argmax", "torch top_p"]))
    wrong = []
    for n in args.batch:
        logits, admissions = make_logits(n, args.vocab, args.flat), torch.zeros(n, 48, dtype=torch.int32, device="cuda")
        slots = torch.arange(n, dtype=torch.int32, device="cuda")
        positions, tokens, alive = slots + 100, torch.empty_like(slots), torch.ones_like(slots)
        serving = CudaSampler(args.vocab, admissions, n, 4096, admissions.device, make_masks(n, args.vocab))
        plain = CudaSampler(args.vocab, admissions, n, 4096, admissions.device)
        times = []
        for name, mode in [*MODES.items(), ("no masks", MODES["greedy"])]:
            sampler = plain if name == "no masks" else serving
            entries, extras = make_entries(n, mode)
            admissions.copy_(torch.from_numpy(entries.view(np.int32).reshape(n, -1)))
            sampler.admit(entries, extras)

            def call() -> None:
                sampler.sample(logits, slots, alive, positions, tokens)  # noqa: B023
                sampler.observe(slots, tokens)  # noqa: B023

            times.append(microseconds(call, args.ms))
            if name == "grammar":
                is_right = is_best_of_the_even(logits, tokens)
            else:
                is_right = name == "penalties" or is_exact(logits, entries, positions, tokens)
            if not is_right:
                wrong.append(f"{name}, batch {n}")
        times.append(microseconds(lambda: logits.argmax(dim=-1), args.ms))  # noqa: B023
        times.append(microseconds(lambda: torch_top_p(logits), args.ms))  # noqa: B023
        print(f"{n:>5} " + " ".join(f"{each:>13.1f}" for each in times), flush=True)
    print(f"tokens against the definition: {'FAIL: ' + '; '.join(wrong) if wrong else 'OK'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
