"""Prints how many bytes a second a large copy within the device moves, read and written both counted; the median."""

import statistics
import sys
import time
from collections.abc import Callable

import torch

REPEATS = 12
CUDA_BYTES, CPU_BYTES = 4 << 30, 256 << 20


def copy_bytes_per_s(device: str, nbytes: int) -> float:
    """Of copies of `nbytes`. On the CPU as many threads as torch takes."""
    source = torch.ones(nbytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    stopwatch = _cuda_seconds if device == "cuda" else _cpu_seconds
    times = [stopwatch(lambda: target.copy_(source)) for _ in range(REPEATS)]
    return 2 * nbytes / statistics.median(times[2:])


def _cuda_seconds(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _cpu_seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main() -> None:
    """A server may hold most of the memory: then smaller ones are copied."""
    device = sys.argv[1]
    nbytes = CUDA_BYTES if device == "cuda" else CPU_BYTES
    while True:
        try:
            print(copy_bytes_per_s(device, nbytes))
            return
        except torch.OutOfMemoryError:
            if nbytes < CPU_BYTES:
                raise
            nbytes //= 4


if __name__ == "__main__":
    main()
