#!/usr/bin/env python3
"""Time attention on a GPU under CUDA graph replay, what ships and variants of its tiles; well under half a minute.

usage: bench_cuda_attention.py [--parts decode,uneven,chunk] [--ms 8] [--seconds 22] [--kv-heads 8]
                               [--tiles 64:4:3,...] [--shares 4:128,...] [--chunk-tiles 128:64:8:2,...]

The shapes are Llama-3-8B's: 32 query and 8 key/value heads of 128, bf16, blocks of 16 tokens in random order. The calls
of a replay read blocks of their own, together more than the L2 cache where the pool has as many. GB/s counts keys and
values once; the share is of a device-to-device copy's bytes, read and written. Graphs are made for contexts up to
131072, as a server's are. `--tiles`: keys in a tile : warps : stages; `--shares`, of the best of those: programs per
multiprocessor that the keys are dealt out to : least keys a program; `--chunk-tiles`: queries : keys : warps : stages.
Parts that are not begun within `--seconds` are left out.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from cuda_attention_peers import Pages, Peer, chunk_peers, decode_peers
from torch import Tensor
from triton.runtime.errors import OutOfResources

from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.cuda.attention import (
    ChunkTiles,
    DecodeTiles,
    TritonAttention,
    choose_chunk_tiles,
    choose_decode_tiles,
)

HEAD_DIM: Final = 128
GROUP: Final = 4
BLOCK_SIZE: Final = 16
SCALE: Final = HEAD_DIM**-0.5
POOL_TOKENS: Final = 1 << 20
"""4 GiB of keys and values; sequences share blocks when they would need more."""
REPLAY_BYTES: Final = 256 << 20
"""That the calls of a replay read at least, five times an H100's L2 cache."""
MOST_CALLS: Final = 64
BOUND: Final = 131072
DECODES: Final = [(batch, context) for context in (1024, 8192) for batch in (1, 64, 256)]
CHUNKS: Final = [(2048, 2048), (2048, 8192), (128, 1024)]
"""New tokens, and context including them."""
TILES: Final = "64:4:3,64:4:2,64:4:4,32:4:4,32:2:4,32:4:3,128:4:2,128:8:2,64:8:3,64:2:3"
SHARES: Final = "2:128,4:64,4:256,8:128,8:64,16:128,16:256"
CHUNK_TILES: Final = "128:64:8:2,128:64:8:3,64:64:4:2,64:64:4:3,128:32:8:3,128:128:8:2,64:32:4:3"
Calls = Sequence[Callable[[], object]]


def microseconds(calls: Calls, ms: float) -> float:
    """Per call: the median of five or more replays of a graph of all `calls`, for about `ms`."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        calls[0]()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times: list[float] = []
    while len(times) < 5 or (sum(times) < ms and len(times) < 200):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times) / len(calls) * 1e3


@dataclass(frozen=True)
class Bench:
    args: argparse.Namespace
    deadline: float
    pool: tuple[Tensor, Tensor]
    """Keys and values [num_blocks, num_kv_heads, BLOCK_SIZE, HEAD_DIM]."""
    copy_rate: float
    """Bytes read and written a microsecond."""
    num_multiprocessors: int

    @property
    def token_bytes(self) -> int:
        return 4 * int(self.args.kv_heads) * HEAD_DIM

    def pages(self, lengths: Sequence[int], at: int = 0) -> Pages:
        """Blocks of sequences of these lengths from block `at` of a random order of the pool on."""
        num_blocks = POOL_TOKENS // BLOCK_SIZE
        generator = torch.Generator(device="cuda").manual_seed(0)
        order = torch.randperm(num_blocks, generator=generator, device="cuda", dtype=torch.int32)
        counts = [-(-length // BLOCK_SIZE) for length in lengths]
        table = torch.zeros(len(lengths), max(counts), dtype=torch.int32, device="cuda")
        for row, count in enumerate(counts):
            table[row, :count] = order[(at + torch.arange(count, device="cuda")) % num_blocks]
            at += count
        return Pages(*self.pool, table, tuple(lengths))

    def replayed(self, lengths: Sequence[int]) -> list[Pages]:
        """Pages of as many calls as a replay has."""
        blocks = sum(-(-length // BLOCK_SIZE) for length in lengths)
        num_bytes = sum(lengths) * self.token_bytes
        calls = max(1, min(MOST_CALLS, -(-REPLAY_BYTES // num_bytes)))
        return [self.pages(lengths, i * blocks) for i in range(calls)]

    def query(self, num_tokens: int) -> Tensor:
        return torch.randn(num_tokens, GROUP * self.args.kv_heads, HEAD_DIM, device="cuda").bfloat16()

    def time(self, calls: Calls) -> float:
        """Microseconds a call; infinitely many if the kernel needs more than the GPU has."""
        try:
            return microseconds(calls, self.args.ms)
        except OutOfResources:
            return float("inf")

    def rate(self, us: float, lengths: Sequence[int]) -> str:
        rate = sum(lengths) * self.token_bytes / us
        return f"{us:9.2f} us {rate / 1e3:6.0f} GB/s {rate / self.copy_rate:6.1%}"


def make_bench(args: argparse.Namespace) -> Bench:
    start = time.monotonic()
    shape = (POOL_TOKENS // BLOCK_SIZE, args.kv_heads, BLOCK_SIZE, HEAD_DIM)
    pool = tuple(torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_() for _ in range(2))
    source = pool[0].view(-1)[: 1 << 29]
    target = torch.empty_like(source)
    us = microseconds([lambda: target.copy_(source)], args.ms)
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    return Bench(args, start + args.seconds, (pool[0], pool[1]), 4 * source.numel() / us, processors)


def make_batch(pages: Pages, query_len: int, bound: int) -> AttentionBatch:
    """A step of all sequences of `pages`, with `query_len` query tokens each."""
    num_seqs = len(pages.lengths)

    def ints(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device="cuda")

    return AttentionBatch(
        block_table=pages.block_table,
        slots=ints(range(num_seqs)),
        query_start=ints(range(0, num_seqs * query_len + 1, query_len)),
        seq_lens=ints(pages.lengths),
        slot_mapping=torch.full((num_seqs * query_len,), -1, device="cuda"),
        num_decodes=num_seqs if query_len == 1 else 0,
        max_query_len=query_len,
        max_seq_len=bound,
    )


def ours(attention: TritonAttention, q: Tensor, pages: Sequence[Pages], batches: Sequence[AttentionBatch]) -> Calls:
    out = torch.empty_like(q)
    return [
        partial(attention.attend, q, page.k_cache, page.v_cache, batch, SCALE, None, out)
        for page, batch in zip(pages, batches, strict=True)
    ]


def compile_all(calls: Calls) -> None:
    """Kernels are compiled at their first call, here several at once."""

    def call_once(call: Callable[[], object]) -> None:
        torch.cuda.set_device(0)
        try:
            call()
        except OutOfResources:
            return

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(call_once, calls))
    torch.cuda.synchronize()


def describe(tiles: DecodeTiles) -> str:
    parts = (tiles.block_n, tiles.num_warps, tiles.num_stages, tiles.shares_per_processor, tiles.least_tokens)
    return ":".join(map(str, parts))


def numbers(text: str) -> list[list[int]]:
    return [[int(number) for number in item.split(":")] for item in text.split(",")]


def decode_variants(args: argparse.Namespace) -> list[DecodeTiles]:
    return [DecodeTiles(*item) for item in numbers(args.tiles)]


def time_decode(bench: Bench, lengths: Sequence[int]) -> list[tuple[float, DecodeTiles]]:
    """What ships first, then variants of its tiles, then of the best one's shares."""
    pages, q = bench.replayed(lengths), bench.query(len(lengths))
    batches = [make_batch(page, 1, BOUND) for page in pages]

    def timed(tiles: DecodeTiles) -> tuple[float, DecodeTiles]:
        attention = TritonAttention(bench.num_multiprocessors, tiles)
        return bench.time(ours(attention, q, pages, batches)), tiles

    found = [timed(tiles) for tiles in [choose_decode_tiles(HEAD_DIM, q.dtype), *decode_variants(bench.args)]]
    best = min(found, key=lambda pair: pair[0])[1]
    for shares, least in numbers(bench.args.shares):
        found.append(timed(replace(best, shares_per_processor=shares, least_tokens=least)))
    return found


def compile_decode(bench: Bench) -> None:
    calls: list[Callable[[], object]] = []
    for num_rows in (1, 64):
        pages, q = bench.pages([512] * num_rows), bench.query(num_rows)
        batch = make_batch(pages, 1, BOUND)
        for tiles in [choose_decode_tiles(HEAD_DIM, q.dtype), *decode_variants(bench.args)]:
            calls += ours(TritonAttention(bench.num_multiprocessors, tiles), q, [pages], [batch])
    compile_all(calls)


def print_decode(bench: Bench, title: str, lengths: Sequence[int]) -> None:
    found = time_decode(bench, lengths)
    us, tiles = found[0]
    print(f"{title:24} ships {describe(tiles):16} {bench.rate(us, lengths)}", flush=True)
    for us, tiles in sorted(found[1:], key=lambda pair: pair[0])[:4]:
        print(f"{'':24}       {describe(tiles):16} {bench.rate(us, lengths)}", flush=True)


def print_peers(bench: Bench, peers: Sequence[Peer], show: Callable[[float], str]) -> None:
    for peer in peers:
        try:
            line = show(bench.time(peer.prepare()))
        except Exception as error:  # a peer that this machine's versions don't have: said, and no reason to stop
            line = f"not here: {type(error).__name__}: {str(error)[:90]!r}"
        print(f"{'':24} {peer.name:22} {line}", flush=True)


def bench_decode(bench: Bench) -> None:
    print("\ndecode: batch x context; keys in a tile:warps:stages:programs per multiprocessor:least keys a program")
    compile_decode(bench)
    for batch, context in DECODES:
        if time.monotonic() > bench.deadline:
            print(f"{batch} x {context} and on: no time left")
            return
        lengths = [context] * batch
        print_decode(bench, f"{batch} x {context}", lengths)
        peers = decode_peers(bench.query(batch), bench.replayed(lengths), SCALE)
        print_peers(bench, peers, partial(bench.rate, lengths=lengths))


def bench_uneven(bench: Bench) -> None:
    print("\ndecode: one long row among short ones, in a graph for contexts up to 131072")
    for lengths in ([65536] + [1024] * 63, [16384] + [512] * 255, [100_000]):
        print_decode(bench, f"{lengths[0]} + {len(lengths) - 1} x {lengths[-1]}", lengths)


def bench_chunk(bench: Bench) -> None:
    print("\nprompt chunks: new tokens of context; queries in a tile:keys:warps:stages")
    variants = [choose_chunk_tiles(HEAD_DIM, torch.bfloat16)]
    variants += [ChunkTiles(*item) for item in numbers(bench.args.chunk_tiles)]
    for num_tokens, context in CHUNKS:
        pages, q = bench.pages([context]), bench.query(num_tokens)
        batch = make_batch(pages, num_tokens, context)
        visible = num_tokens * (context - num_tokens) + num_tokens * (num_tokens + 1) // 2
        flops = 4 * HEAD_DIM * q.shape[1] * visible
        attentions = [TritonAttention(bench.num_multiprocessors, chunk_tiles=tiles) for tiles in variants]
        calls = [ours(attention, q, [pages], [batch]) for attention in attentions]
        compile_all([call for one in calls for call in one])
        timed = [(bench.time(one), tiles) for one, tiles in zip(calls, variants, strict=True)]

        def show(us: float, flops: int = flops) -> str:
            return f"{us:9.2f} us {flops / us / 1e6:6.0f} TFLOP/s"

        for i, (us, tiles) in enumerate([timed[0], *sorted(timed[1:], key=lambda pair: pair[0])[:4]]):
            name = f"{tiles.block_m}:{tiles.block_n}:{tiles.num_warps}:{tiles.num_stages}"
            title = f"{num_tokens} of {context}" if i == 0 else ""
            print(f"{title:24} {'' if i else 'ships':5} {name:16} {show(us)}", flush=True)
        print_peers(bench, chunk_peers(q, pages, SCALE), show)


PARTS: Final = {"decode": bench_decode, "chunk": bench_chunk, "uneven": bench_uneven}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="chunk,uneven,decode")
    parser.add_argument("--ms", type=float, default=8.0, help="of replays of each way")
    parser.add_argument("--seconds", type=float, default=22.0)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--tiles", default=TILES)
    parser.add_argument("--shares", default=SHARES)
    parser.add_argument("--chunk-tiles", default=CHUNK_TILES)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_cuda_attention: needs a CUDA device")
    bench = make_bench(args)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; copy {bench.copy_rate / 1e3:.0f} GB/s")
    for name in args.parts.split(","):
        if time.monotonic() > bench.deadline:
            print(f"\n{name}: no time left")
        else:
            PARTS[name](bench)


if __name__ == "__main__":
    main()
