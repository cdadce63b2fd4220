"""Where the time of a decode step goes on a GPU, by kernel: the captured graph launched by hand over a full batch, no
other process, against what reading weights and KV must cost.

    python tools/cuda_step_profile.py MODEL --batch 1 64 256 --context 1024

MODEL is a checkpoint's folder; only its config.json is read, weights are random.
"""

import argparse
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import torch
from torch.profiler import ProfilerActivity, profile

from albireo.checkpoint import kv_bytes_per_block, read_checkpoint
from albireo.checkpoint.weight_shapes import weight_bytes
from albireo.config import SchedulerConfig, SegmentFds, WorkerConfig
from albireo.gpu_worker.collectives.interface import Alone
from albireo.gpu_worker.cuda.device import CudaDevice
from albireo.gpu_worker.cuda.runtime import CudaRuntime
from albireo.shm import segment
from albireo.shm.flight import Unrecorded
from albireo.shm.plan_ring import PlanRing
from albireo.shm.token_ring import TokenRing

PARTS: Final = (
    ("plan, inputs, results", ("fetch_plan", "decode_inputs", "finish_step", "stamp")),
    ("attention", ("decode_kernel", "combine_kernel")),
    ("rotation, KV write", ("rotate_and_store",)),
    ("norms, activation", ("rms_norm", "silu_and_mul")),
    ("products", ("gemv", "skinny", "nvjet", "gemm", "cutlass", "splitK", "sm90_xmma")),
    ("embedding", ("embedding", "indexSelect", "gather_kernel", "index_elementwise")),
)
"""Parts of a step, by what their kernels' names contain; the rest is sampling."""


def make_device(path: str, max_rows: int, max_model_len: int) -> CudaDevice:
    """A device of its own rings, which nobody else reads, and enough KV blocks for all rows."""
    model = read_checkpoint(path, check_weights=False).model
    scheduler = SchedulerConfig(max_num_seqs=max_rows, max_model_len=max_model_len)
    plan_ring, token_ring = PlanRing(scheduler, 1), TokenRing(scheduler)
    fds = segment.create("plan", plan_ring.geometry.size), segment.create("token", token_ring.geometry.size)
    plan_ring.initialise(fds[0])
    token_ring.initialise(fds[1])
    num_blocks = max_rows * scheduler.max_blocks_per_seq
    config = WorkerConfig(
        name="worker-0", run_dir="", log_level="info", scheduler=scheduler, segments=SegmentFds(fds[0], (fds[1],), -1),
        rank=0, num_workers=1, sampling_mode="sequence-parallel", collectives="nccl", model=model, model_path=path,
        device="cuda", dtype="bfloat16", kv_cache_bytes=num_blocks * kv_bytes_per_block(model, 16, "bfloat16"),
        num_threads=1, load_format="dummy", seed=0,
    )  # fmt: skip
    device = CudaDevice(
        config, CudaRuntime(0), Alone(), lambda: None, lambda stage, fraction: None, Unrecorded()
    )  # fmt: skip
    for fd in fds:
        os.close(fd)
    return device


@torch.inference_mode()
def fill(device: CudaDevice, batch: int, context: int, parameters: dict[str, float]) -> None:
    """`batch` sequences of `context` tokens whose KV is taken as written, sampled with `parameters`."""
    from albireo.shm.layout import ADMISSION

    state = device._state
    state.rows.fill_(-1)
    state.rows[:batch] = torch.arange(batch, dtype=torch.int32)
    state.alive.fill_(1)
    state.num_tokens.fill_(context)
    width, slots = state.block_table.shape[1], len(state.block_table)
    blocks = torch.randperm(device.num_kv_blocks, device=state.rows.device).to(torch.int32)
    state.block_table.zero_()
    state.block_table[:batch] = blocks[: batch * width].view(batch, width)
    words = torch.zeros(ADMISSION.itemsize // 4, dtype=torch.int32)
    as_floats = words.view(torch.float32)
    for name, value in ({"repetition_penalty": 1.0, "top_p": 1.0} | parameters).items():
        as_floats[ADMISSION.fields[name][1] // 4] = value  # type: ignore[index]
    state.admissions.copy_(words.expand(slots, -1))


@torch.inference_mode()
def measure(device: CudaDevice, batch: int, steps: int) -> tuple[float, dict[str, tuple[float, int]]]:
    """Median ms of a step, launched one behind the other, and of each part (ms, kernels a step)."""
    for _ in range(3):
        device._decode(batch)
    torch.cuda.synchronize()
    times = []
    for _ in range(3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(steps):
            device._decode(batch)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / steps)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(5):
            device._decode(batch)
        torch.cuda.synchronize()
    parts: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if "CUDA" in str(event.device_type):
            parts[part_of(event.name)].append(event.device_time / 1e3)
    return statistics.median(times), {name: (sum(found) / 5, len(found) // 5) for name, found in parts.items()}


def part_of(kernel: str) -> str:
    for part, names in PARTS:
        if any(name in kernel for name in names):
            return part
    return "sampling"


def copy_bandwidth() -> float:
    """Bytes per ms that a large copy on the device reads and writes."""
    source = torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return float(2 * source.nbytes / statistics.median(times))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--temperature", type=float, default=0.8, help="of the second profile of each batch")
    parser.add_argument("--top-p", type=float, default=0.95, help="the same; the first is greedy")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("no CUDA device here")
        return 0
    longest = args.context + 4 * args.steps
    bandwidth = copy_bandwidth()
    torch.cuda.empty_cache()
    device = make_device(args.model, max(args.batch), longest)
    model = read_checkpoint(args.model, check_weights=False).model
    table_bytes = 0 if model.tie_word_embeddings else 2 * model.vocab_size * model.hidden_size
    weights = weight_bytes(model, "bfloat16") - table_bytes
    token_bytes = kv_bytes_per_block(model, 16, "bfloat16") / 16
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; copy {bandwidth / 1e6:.0f} GB/s")
    print(f"weights read a step {weights / 1e9:.2f} GB, KV {token_bytes / 1e3:.0f} kB a token")
    for batch in args.batch:
        floor_ms = (weights + batch * args.context * token_bytes) / bandwidth
        for parameters in ({}, {"temperature": args.temperature, "top_p": args.top_p}):
            fill(device, batch, args.context, parameters)
            report(device, batch, args, floor_ms, parameters)
    return 0


def report(
    device: CudaDevice, batch: int, args: argparse.Namespace, floor_ms: float, parameters: dict[str, float]
) -> None:
    step_ms, parts = measure(device, batch, args.steps)
    busy_ms = sum(ms for ms, _ in parts.values())
    ratio = f"{step_ms / floor_ms:.2f} of the floor, {floor_ms:.3f} ms"
    print(f"\nbatch {batch}, context {args.context}, {parameters or 'greedy'}: step {step_ms:.3f} ms, {ratio}")
    for name, (ms, count) in sorted(parts.items(), key=lambda item: -item[1][0]):
        print(f"  {name:24}{ms:9.3f} ms{ms / step_ms:8.1%}{count:6} kernels")
    print(f"  {'between kernels':24}{step_ms - busy_ms:9.3f} ms{(step_ms - busy_ms) / step_ms:8.1%}")


if __name__ == "__main__":
    sys.exit(main())
