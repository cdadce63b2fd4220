#!/usr/bin/env python3
"""Time a layer's products and element-wise kernels on a GPU, under CUDA graph replay.

usage: bench_cuda_layers.py [--parts gemv,rows,elementwise,layer] [--shapes qkv,o,gate_up,down,lm_head]
                            [--tiles 8:4:1,4:4:1x2,...] [--skinny 32:256:4:4,...] [--rows 2,4,8,16,64,256]
                            [--all-variants] [--ms 10]

The shapes are Llama-3-8B's, in bf16. Every call of a replay reads another weight, together several times the L2 cache.
GB/s counts the bytes of the weight alone; the share is of a device-to-device copy's bytes, read and written. `--tiles`:
outputs a program : warps : stages (1: registers, more: shared memory), x2: steps of twice the least length.
`--skinny`: outputs a program : inputs a step : warps : stages.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional
from triton.runtime.errors import OutOfResources

from albireo.checkpoint import ModelConfig, RopeConfig
from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.cuda.embedding import look_up_embedding
from albireo.gpu_worker.cuda.gemv import GemvTiles, Norm, choose_tiles, dependent, gemv
from albireo.gpu_worker.cuda.layer_ops import TritonLayerOps
from albireo.gpu_worker.cuda.linear import CudaLinear
from albireo.gpu_worker.cuda.skinny import SkinnyTiles, choose_skinny_tiles, skinny_product
from albireo.gpu_worker.rope import rope_table

SHAPES: Final = {
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
    "lm_head": (128256, 4096),
}
TILES: Final = "8:4:1,4:4:1,2:4:1,16:4:1,4:4:1x2,2:8:1,4:8:1,8:2:1,16:2:1,8:1:1,4:1:1,8:4:3,4:4:4,16:4:3"
SKINNY: Final = "32:256:4:4,16:256:2:4,32:128:4:6,64:128:4:5,16:512:4:3,16:256:4:5"
POOL_ELEMENTS: Final = 1_250_000_000
"""Weights are views of one buffer of random numbers of 2.5 GB."""
LEAST_BYTES: Final = 400_000_000
"""That a replay reads at least: 8 times an H100's L2 cache."""
Calls = Sequence[Callable[[], object]]

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM", vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_layers=1,
    num_heads=32, num_kv_heads=8, head_dim=128, rms_norm_eps=1e-5, rope=RopeConfig(), max_position_embeddings=8192,
    tie_word_embeddings=False, qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm=False, sliding_windows=(None,),
    dtype="bfloat16", eos_token_ids=(), bos_token_id=None,
)  # fmt: skip


def microseconds(calls: Calls, ms: float) -> float:
    """Per call, of a graph of all `calls`, replayed for about `ms`."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def replay(times: int) -> float:
        start.record()
        for _ in range(times):
            graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    replay(1)
    once = replay(2) / 2
    times = max(3, int(ms / once))
    return replay(times) / times / len(calls) * 1e3


class Bench:
    """The buffers, the clock and the machine's copy rate."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.shapes = {name: SHAPES[name] for name in args.shapes.split(",")}
        self._pool = torch.empty(POOL_ELEMENTS, dtype=torch.bfloat16, device="cuda")
        self._pool.normal_(std=0.02)
        self.copy_rate = self._measure_copy()

    def _measure_copy(self) -> float:
        """Bytes read and written a microsecond, 1 GiB to another."""
        half = 1 << 29
        source, target = self._pool[:half], self._pool[half : 2 * half]
        keep = target.clone()
        us = microseconds([lambda: target.copy_(source)], self.args.ms)
        target.copy_(keep)
        return 4 * half / us

    def weights(self, shape: tuple[int, int]) -> list[Tensor]:
        size = shape[0] * shape[1]
        count = min(POOL_ELEMENTS // size, max(2, -(-LEAST_BYTES // (2 * size)), 8 if size < 1 << 25 else 2))
        return [self._pool[i * size : (i + 1) * size].view(shape) for i in range(count)]

    def layers(self, num_layers: int) -> list[dict[str, Tensor]]:
        found, at = [], 0
        for _ in range(num_layers):
            layer = {}
            for name in ("qkv", "o", "gate_up", "down"):
                rows, columns = SHAPES[name]
                layer[name] = self._pool[at : at + rows * columns].view(rows, columns)
                at += rows * columns
            found.append(layer)
        return found

    def time(self, calls: Calls) -> float:
        """Microseconds a call; infinitely many if the kernel needs more than the GPU has."""
        try:
            return microseconds(calls, self.args.ms)
        except OutOfResources:
            return math.inf

    def rate(self, us: float, shape: tuple[int, int]) -> str:
        rate = 2 * shape[0] * shape[1] / us
        return f"{us:8.2f} us {rate / 1e3:6.0f} GB/s {rate / self.copy_rate:6.1%}"


def parse_tiles(text: str) -> list[GemvTiles]:
    found = []
    for item in text.split(","):
        body, _, factor = item.partition("x")
        block_n, num_warps, stages = map(int, body.split(":"))
        found.append(GemvTiles(block_n, 256 * num_warps * int(factor or 1), num_warps, stages))
    return found


def in_parallel(calls: Calls) -> None:
    """Kernels are compiled at their first call; the compiler leaves Python's lock."""
    with ThreadPoolExecutor(12, initializer=partial(torch.cuda.set_device, torch.cuda.current_device())) as pool:
        for done in [pool.submit(call) for call in calls]:
            with suppress(OutOfResources):
                done.result()
    torch.cuda.synchronize()


def bench_gemv(bench: Bench) -> None:
    tiles = parse_tiles(bench.args.tiles)
    print("\n1 row: own kernel (outputs a program, inputs a step, warps, stages), best first, beside F.linear")
    x = {k: torch.randn(1, k, device="cuda").bfloat16() for k in (4096, 14336)}
    by_inputs = {shape[1]: bench.weights(shape)[0] for shape in bench.shapes.values()}  # each is a kernel of its own
    in_parallel([partial(gemv, x[k], weight, tiles=t) for k, weight in by_inputs.items() for t in tiles])
    for name, shape in bench.shapes.items():
        weights, row = bench.weights(shape), x[shape[1]]
        timed = []
        for t in [choose_tiles(*shape, 2), *tiles]:
            us = bench.time([partial(gemv, row, w, tiles=t) for w in weights])
            timed.append((us, t))
        chosen, ranked = timed[0], sorted(timed[1:], key=lambda pair: pair[0])
        plain = bench.time([partial(functional.linear, row, w) for w in weights])
        print(f"{name:8} {shape[0]:6} x {shape[1]:5}  F.linear {bench.rate(plain, shape)}")
        print(f"  chosen {_name(chosen[1])} {bench.rate(chosen[0], shape)}")
        for us, t in ranked if bench.args.all_variants else ranked[:3]:
            print(f"         {_name(t)} {bench.rate(us, shape)}")


def _name(tiles: GemvTiles) -> str:
    return f"{tiles.block_n:3}:{tiles.block_k:5}:{tiles.num_warps}:{tiles.stages}"


def bench_rows(bench: Bench) -> None:
    variants = [SkinnyTiles(*map(int, item.split(":"))) for item in bench.args.skinny.split(",")]
    rows = [int(n) for n in bench.args.rows.split(",")]
    print("\nseveral rows: F.linear, own tensor-core kernel as chosen, and its best variant")
    x = {k: torch.randn(max(rows), k, device="cuda").bfloat16() for k in (4096, 14336)}
    by_inputs = {shape[1]: bench.weights(shape)[0] for shape in bench.shapes.values()}
    for m in sorted({max(16, 1 << (n - 1).bit_length()) for n in rows if n <= 64}):
        in_parallel([partial(skinny_product, x[k][:m], w, tiles=v) for k, w in by_inputs.items() for v in variants])
    for name, shape in bench.shapes.items():
        weights = bench.weights(shape)
        for n in rows:
            part = x[shape[1]][:n]
            us = bench.time([partial(functional.linear, part, w) for w in weights])
            line = f"{name:8} {n:4} rows  F.linear {bench.rate(us, shape)}"
            if n <= 64:
                timed = []
                for v in [choose_skinny_tiles(*shape), *variants]:
                    timed.append((bench.time([partial(skinny_product, part, w, tiles=v) for w in weights]), v))
                best = min(timed, key=lambda pair: pair[0])
                v = best[1]
                line += f" | chosen {bench.rate(timed[0][0], shape)} | best {bench.rate(best[0], shape)}"
                line += f" {v.block_n}:{v.block_k}:{v.num_warps}:{v.stages}"
            print(line)


def bench_elementwise(bench: Bench) -> None:
    print("\nelement-wise kernels, us a call (8 buffers in turn)")
    table = rope_table(CONFIG.rope, CONFIG.head_dim, 8192).cuda()
    ops = TritonLayerOps(CONFIG, table, torch.bfloat16)
    embedding = bench.weights(SHAPES["lm_head"])[0]
    caches = torch.zeros(2, 512, 8, 16, 128, dtype=torch.bfloat16, device="cuda")
    unused = torch.zeros(0, dtype=torch.int32)
    print("  rows rms_norm  rotate  silu_and_mul  embedding")
    for n in (1, 64, 256, 2048):
        x, qkv, gate_up = (torch.randn(8, n, w, device="cuda").bfloat16() for w in (4096, 6144, 28672))
        positions = torch.randint(8192, (n,), device="cuda")
        batch = AttentionBatch(unused, unused, unused, unused, torch.randperm(8192, device="cuda")[:n], 0, 0, 0)
        tokens = torch.randint(128256, (n,), dtype=torch.int32, device="cuda")
        times = [
            bench.time([partial(ops.rms_norm, x[i], embedding[0]) for i in range(8)]),
            bench.time(
                [partial(ops.rotate_and_store, qkv[i], None, positions, caches[0], caches[1], batch) for i in range(8)]
            ),
            bench.time([partial(ops.silu_and_mul, gate_up[i]) for i in range(8)]),
            bench.time([partial(look_up_embedding, embedding, tokens)] * 8),
        ]
        print(f"{n:6}" + "".join(f"{us:9.2f}" for us in times))


class Chain:
    """A layer's products of one row in their order, with the norms and the activation, without attention."""

    def __init__(self, ops: TritonLayerOps, layer: dict[str, Tensor], norm: Norm, *, dependent_launch: bool) -> None:
        self._ops, self._norm = ops, norm

        def linear(name: str, is_gated: bool = False, rows: int = 1) -> CudaLinear:
            outputs, inputs = layer[name].shape
            tiles = choose_tiles(outputs, inputs, 2, is_gated)
            return CudaLinear(layer[name], tiles=dependent(tiles) if dependent_launch else tiles, skinny_rows=rows)

        self._own = {name: linear(name) for name in layer}
        self._cublas = {name: linear(name, rows=0) for name in layer}
        self._gated = linear("gate_up", is_gated=True)

    def cublas(self, hidden: Tensor) -> Tensor:
        return self._one_by_one(self._cublas, hidden)

    def unfused(self, hidden: Tensor) -> Tensor:
        return self._one_by_one(self._own, hidden)

    def _one_by_one(self, linears: dict[str, CudaLinear], hidden: Tensor) -> Tensor:
        qkv = linears["qkv"](self._ops.rms_norm(hidden, self._norm.weight))
        hidden = linears["o"].add_to(hidden, qkv[:, :4096])
        gate_up = linears["gate_up"](self._ops.rms_norm(hidden, self._norm.weight))
        return linears["down"].add_to(hidden, self._ops.silu_and_mul(gate_up))

    def fused(self, hidden: Tensor) -> Tensor:
        qkv = self._own["qkv"].normed(hidden, self._norm)
        hidden = self._own["o"].add_to(hidden, qkv[:, :4096])
        return self._own["down"].add_to(hidden, self._gated.normed_and_gated(hidden, self._norm))


def bench_layer(bench: Bench) -> None:
    print("\na layer's products of one row with norms and activation, no attention, us a layer (5 layers)")
    layers = bench.layers(5)
    norm = Norm(torch.ones(4096, dtype=torch.bfloat16, device="cuda"), CONFIG.rms_norm_eps)
    ops = TritonLayerOps(CONFIG, torch.zeros(1, 2, 64, device="cuda"), torch.bfloat16)
    chains = {later: [Chain(ops, layer, norm, dependent_launch=later) for layer in layers] for later in (False, True)}
    nbytes = (sum(weight.numel() for weight in layers[0].values()), 1)
    start = torch.randn(1, 4096, device="cuda").bfloat16()
    results = {}
    for name, later in (("cublas", False), ("unfused", False), ("fused", False), ("unfused", True), ("fused", True)):
        title = name + (", dependent launches" if later else "")
        hidden = start.clone()
        calls: Calls = [partial(getattr(chain, name), hidden) for chain in chains[later]]
        us = bench.time(calls)
        hidden.copy_(start)
        for call in calls:
            call()
        results[title] = hidden.clone()
        print(f"{title:28} {bench.rate(us, nbytes)}")
    print("same bits as unfused:", {k: torch.equal(v, results["unfused"]) for k, v in results.items()})


PARTS: Final = {"gemv": bench_gemv, "rows": bench_rows, "elementwise": bench_elementwise, "layer": bench_layer}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--tiles", default=TILES)
    parser.add_argument("--skinny", default=SKINNY)
    parser.add_argument("--rows", default="2,4,8,16,64,256")
    parser.add_argument("--all-variants", action="store_true")
    parser.add_argument("--ms", type=float, default=10)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_cuda_layers: needs a CUDA device")
    bench = Bench(args)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; copy {bench.copy_rate / 1e3:.0f} GB/s")
    for name in args.parts.split(","):
        PARTS[name](bench)
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
