"""Products of up to `MAX_ROWS` rows with a bf16 weight, straight from the layout that oneDNN packs weights into.

Few rows are bound by reading the weight, many by arithmetic; from 8 to 32 oneDNN reaches neither limit, since it does
one after the other. Here a tile of rows works on a strip of the weight that lies in L1, while it asks for a share of
the next one. Below that, what counts is that oneDNN takes longer to get going. And since the same packed bytes are
read, no second copy is kept. Figures are in docs/benchmarks/cpu-products.md.

The layout is oneDNN's own business and may change, so `packed_as_expected` compares it with the weight's bytes before
it is trusted: blocks of 64 output features, and in a block, one after the other, the pairs of input features, each as
64 times 2 elements.

The sums are taken in oneDNN's order too, found by experiment (oneDNN 3.12 with AVX512-BF16, 2 to 2048 rows, 64 to
14336 input features, 1 and 2 threads): the upper element of a pair goes first, and a long row is cut into runs that are
summed on their own. So a row gets the same bits here and there, and a request the same tokens alone and in any batch.
Where oneDNN has other instructions (AMX) that need not hold: `layers.PackedLinear` compares bits before it uses this.
"""

import ctypes
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from albireo.gpu_worker.kernels.launch import INLINED, Kernel
from albireo.gpu_worker.kernels.row_tile import COLUMNS, TILE_ROWS, tile_product
from albireo.gpu_worker.kernels.simd import LANES, add, fetch_add, load, pointer, splat, store

MAX_ROWS: Final = 96
"""From about 128 rows on oneDNN is as fast."""
BLOCK: Final = COLUMNS
"""Output features that lie together."""
LONG_ROW: Final = 1024
"""Input features up to which runs are half as long."""

_STRIP: Final = 64
"""Pairs that a few tiles of rows are multiplied with before the next ones: 16 KiB of the weight, which stay in L1 while
the next strip comes from memory. A whole block at a time instead, from L2: 4.9 against 3.9 ms with 8 rows (four of
28 layers of a 0.6B model)."""
_STRIP_TILES: Final = 3
"""With more tiles arithmetic decides, and whole runs are a little faster."""
_NEAR: Final = 2048
"""With several tiles each asks for its share of the next strip; a single one for what lies this many bytes ahead."""
_GROUP_ROWS: Final = 8 * TILE_ROWS
"""Most rows that go over a block together."""
_SUMS: Final = _GROUP_ROWS * BLOCK
"""Floats of the sums of a run; those of all runs so far lie behind them."""
_ZERO: Final = np.float32(0)

PRODUCT_ARGUMENTS = np.dtype(
    [
        ("counter", "<i8"),  # int64, 0 at first: blocks that threads have taken
        ("chunk", "<i8"),  # blocks that a thread takes at a time
        ("blocks", "<i8"),  # output features / 64
        ("pairs", "<i8"),  # input features / 2
        ("run", "<i8"),  # pairs that are summed on their own, before the sums of the runs are added up
        ("rows", "<i8"),
        ("weight", "<i8"),  # as packed
        ("x", "<i8"),  # bf16 [rows, 2 * pairs]
        ("bias", "<i8"),  # bf16 [64 * blocks], or 0
        ("residual", "<i8"),  # bf16 [rows, 64 * blocks], added to the product, or 0
        ("out", "<i8"),  # bf16 [rows, 64 * blocks]
    ]
)


@intrinsic
def _stack_memory(typing_context: Any) -> Any:
    """Address of 2 * `_SUMS` fp32 on the thread's stack, which are in its cache."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = cgutils.alloca_once(builder, ir.ArrayType(ir.FloatType(), 2 * _SUMS))
        memory.align = 64
        return builder.ptrtoint(memory, ir.IntType(64))

    return types.int64(), codegen


@njit(**INLINED)
def _sum_block(sums: Any, weight: Any, x: Any, rows: Any, pairs: Any, run: Any) -> None:
    """The sums of the block at the address `weight` for `rows` rows at `x`, at most `_GROUP_ROWS`: fp32 [rows, 64],
    left behind `_SUMS` floats at the address `sums`."""
    run_sums, totals = pointer(sums, np.float32), pointer(sums + 4 * _SUMS, np.float32)
    for i in range(0, rows * BLOCK, LANES):
        store(run_sums, i, splat(_ZERO))
        store(totals, i, splat(_ZERO))
    tiles = (rows + TILE_ROWS - 1) // TILE_ROWS
    height, higher = rows // tiles, rows % tiles
    length = _STRIP if 2 <= tiles <= _STRIP_TILES else run
    ahead_step = 4 * BLOCK // tiles
    for start in range(0, pairs, length):
        n = min(length, pairs - start)
        strip = weight + 4 * BLOCK * start
        row = 0
        for tile in range(tiles):
            height_here = height + (1 if tile < higher else 0)
            ahead = strip + (_NEAR if tiles == 1 else 4 * BLOCK * n + ahead_step * n * tile)
            at = x + 4 * (pairs * row + start)
            tile_product(height_here, sums + 4 * BLOCK * row, strip, at, 4 * pairs, n, ahead, ahead_step)
            row += height_here
        if (start + n) % run == 0 or start + n == pairs:
            for i in range(0, rows * BLOCK, LANES):
                store(totals, i, add(load(totals, i), load(run_sums, i)))
                store(run_sums, i, splat(_ZERO))


@njit(**INLINED)
def _finish_block(sums: Any, rows: Any, bias: Any, residual: Any, out: Any, stride: Any) -> None:
    """Adds bias and residual to the block's sums, and rounds. `bias`, `residual` (0 if there is none) and `out` are the
    addresses of the block's own part, whose rows are `stride` bytes apart."""
    totals = pointer(sums + 4 * _SUMS, np.float32)
    for row in range(rows):
        for j in range(0, BLOCK, LANES):
            total = load(totals, row * BLOCK + j)
            if bias != 0:
                total = add(total, load(pointer(bias, np.uint16), j))
            if residual != 0:
                total = add(total, load(pointer(residual + stride * row, np.uint16), j))
            store(pointer(out + stride * row, np.uint16), j, total)


@cache
def skinny_product_kernel() -> Kernel:
    """out = x @ weight.T + bias + residual."""

    def skinny_product(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        blocks, pairs, run, chunk, stride = a.blocks, a.pairs, a.run, a.chunk, 2 * BLOCK * a.blocks
        sums = _stack_memory()
        groups = (a.rows + _GROUP_ROWS - 1) // _GROUP_ROWS
        while True:
            first = fetch_add(a.counter, chunk)
            if first >= blocks:
                return
            for block in range(first, min(first + chunk, blocks)):
                bias = a.bias + 2 * BLOCK * block if a.bias != 0 else 0
                weight = a.weight + 4 * BLOCK * pairs * block
                for group in range(groups):
                    row, end = a.rows * group // groups, a.rows * (group + 1) // groups
                    _sum_block(sums, weight, a.x + 4 * pairs * row, end - row, pairs, run)
                    at = 2 * BLOCK * block + stride * row
                    residual = a.residual + at if a.residual != 0 else 0
                    _finish_block(sums, end - row, bias, residual, a.out + at, stride)

    return Kernel(skinny_product, PRODUCT_ARGUMENTS)


def max_rows() -> int:
    """Most rows for which the kernel is faster than oneDNN: without bf16 instructions, as long as reading decides."""
    return MAX_ROWS if torch.cpu._is_avx512_bf16_supported() else 4


def run_pairs(in_features: int) -> int:
    """Pairs of input features that oneDNN sums in one run, with two rows or more."""
    return 512 if in_features > LONG_ROW else 256


def packed_as_expected(weight: Tensor, packed: Tensor) -> bool:
    """Whether `packed`, oneDNN's form of `weight` [out_features, in_features], is bf16 in the layout read here.

    Sizes are compared, and the bytes of the first and the last block.
    """
    out_features, in_features = weight.shape
    if weight.dtype != torch.bfloat16:
        return False
    if out_features % BLOCK or in_features % 32 or torch.ops.mkldnn._nbytes(packed) != weight.nbytes:
        return False
    address = torch.ops.mkldnn.data_ptr(packed)
    for block in (0, out_features // BLOCK - 1):
        rows = weight[block * BLOCK : (block + 1) * BLOCK]
        expected = rows.reshape(BLOCK, -1, 2).transpose(0, 1).contiguous().view(torch.int16).numpy()
        bytes_there = (ctypes.c_char * expected.nbytes).from_address(address + block * expected.nbytes)
        if bytes_there.raw != expected.tobytes():
            return False
    return True
