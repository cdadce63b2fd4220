"""One process of `bench_attention`'s layers table: seconds of a step, wall clock and CPU time, as JSON on stdout."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Final

import attention_candidates as candidates
import torch
from attention_candidates import SCALE, Pages
from torch import Tensor
from torch.nn.functional import silu

from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.cpu import CpuAttention
from albireo.gpu_worker.backend import Linear
from albireo.gpu_worker.layers import make_linear

HIDDEN: Final = 256
INTERMEDIATE: Final = 1024
NUM_HEADS: Final = 8
NUM_KV_HEADS: Final = 4
HEAD_DIM: Final = 64
BLOCK_SIZE: Final = 16
NUM_LAYERS: Final = 8
NUM_SEQS: Final = 32
CONTEXT: Final = 128
SECONDS: Final = 2.0

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_attend(way: str) -> Attend:
    """Attention of one layer, on pages of its own: q, k, v [num_seqs, heads, head_dim] -> like q."""
    per_sequence = CONTEXT // BLOCK_SIZE
    shape = (NUM_SEQS * per_sequence, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    table = torch.randperm(shape[0]).int().view(NUM_SEQS, per_sequence)
    pages = Pages(torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16(), table)
    block, offset = table[:, -1].long(), BLOCK_SIZE - 1
    out = torch.zeros(NUM_SEQS, NUM_HEADS, HEAD_DIM, dtype=torch.bfloat16)
    batch = AttentionBatch(
        block_table=table,
        slots=torch.arange(NUM_SEQS, dtype=torch.int32),
        query_start=torch.arange(NUM_SEQS + 1, dtype=torch.int32),
        seq_lens=torch.full((NUM_SEQS,), CONTEXT, dtype=torch.int32),
        slot_mapping=block * BLOCK_SIZE + offset,
        num_decodes=NUM_SEQS,
        max_query_len=1,
        max_seq_len=CONTEXT,
    )
    attention = CpuAttention(torch.bfloat16, torch.get_num_threads())

    def albireo(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attention.write_kv(k, v, pages.k_cache, pages.v_cache, batch)
        attention.attend(q, pages.k_cache, pages.v_cache, batch, SCALE, None, out)
        return out

    def numba(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pages.k_cache[block, :, offset] = k
        pages.v_cache[block, :, offset] = v
        candidates.plain_numba(q, pages)()
        return out

    return {"albireo": albireo, "numba": numba, "none": lambda q, k, v: q}[way]


class Layer:
    """The products of one decoder layer around its attention."""

    def __init__(self, way: str) -> None:
        def linear(out_features: int, in_features: int) -> Linear:
            return make_linear(torch.randn(out_features, in_features).bfloat16() * 0.05)

        self._qkv = linear((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM, HIDDEN)
        self._o = linear(HIDDEN, NUM_HEADS * HEAD_DIM)
        self._gate_up = linear(2 * INTERMEDIATE, HIDDEN)
        self._down = linear(HIDDEN, INTERMEDIATE)
        self._attend = make_attend(way)

    def __call__(self, x: Tensor) -> Tensor:
        """x and result are [num_seqs, hidden]."""
        qkv = self._qkv(x).view(NUM_SEQS, -1, HEAD_DIM)
        q, k, v = torch.split(qkv, [NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=1)
        x = x + self._o(self._attend(q, k, v).reshape(NUM_SEQS, -1))
        gate, up = self._gate_up(x).chunk(2, -1)
        return x + self._down(silu(gate).mul_(up))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=["none", "albireo", "numba"], help="of attention")
    way = parser.parse_args().way
    layers = [Layer(way) for _ in range(NUM_LAYERS)]
    start = torch.randn(NUM_SEQS, HIDDEN).bfloat16()

    def step() -> None:
        x = start
        for layer in layers:
            x = layer(x)

    for _ in range(5):
        step()
    times: list[float] = []
    began, cpu_began = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < SECONDS:
        before = time.perf_counter()
        step()
        times.append(time.perf_counter() - before)
    cpu = (time.process_time() - cpu_began) / len(times)
    print(json.dumps([statistics.median(times), cpu]))


if __name__ == "__main__":
    main()
