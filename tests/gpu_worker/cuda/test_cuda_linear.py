"""The GPU's products against fp64, and the fused ones against the kernels one by one."""

import pytest
import torch
from torch import Tensor

from albireo.gpu_worker.backend import Linear
from albireo.gpu_worker.cuda.gemv import GemvTiles, Norm, choose_tiles, dependent, gemv
from albireo.gpu_worker.cuda.kernels.elementwise import rms_norm_kernel, silu_and_mul_kernel
from albireo.gpu_worker.cuda.linear import CudaLinear
from albireo.gpu_worker.cuda.skinny import SkinnyTiles, skinny_product

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(16, 256), (37, 200), (5, 1104), (1, 8)]
"""Whole tiles; neither outputs nor inputs whole tiles; several steps, the last not full; less than a tile."""


def random(*shape: int, seed: int = 0, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def poisoned(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=device)


def assert_rounded(ours: Tensor, exact: Tensor) -> None:
    """`ours` is `exact` (fp64) rounded once, up to the error of sums of about a thousand terms in fp32."""
    # Triton's interpreter does not round to bf16: it cuts off
    unit = 0.0 if ours.dtype == torch.float32 else 2.0**-8 if ours.is_cuda else 2.0**-7
    torch.testing.assert_close(ours.double(), exact, atol=1e-4, rtol=unit * 1.01)


class Case:
    """One product's tensors."""

    def __init__(self, rows: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        outputs, inputs = shape
        # what lies behind the weight spoils every sum that it gets into, even times 0
        self.weight = poisoned(outputs + 1, inputs, dtype=dtype, device=device)[:outputs]
        self.weight.copy_(random(outputs, inputs, dtype=dtype, device=device))
        self.bias = random(outputs, seed=1, dtype=dtype, device=device)
        self.x = random(rows, inputs, seed=2, dtype=dtype, device=device)
        self.residual = random(rows, outputs, seed=3, dtype=dtype, device=device)
        self.out = poisoned(rows, outputs, dtype=dtype, device=device)
        self.exact = self.x.double() @ self.weight.double().t()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 3, 5])
@pytest.mark.parametrize("skinny_rows", [0, 16])
def test_linear_multiplies_and_adds(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int], rows: int, skinny_rows: int
) -> None:
    case = Case(rows, shape, dtype, device)
    # where torch adds a bias it may round twice, and the interpreter cuts off
    bound = 0.0 if dtype == torch.float32 else 2.0**-6 * case.exact.abs().max().item()
    for bias in (None, case.bias):
        linear = CudaLinear(case.weight, bias, skinny_rows=skinny_rows)
        exact = case.exact if bias is None else case.exact + bias.double()
        torch.testing.assert_close(linear(case.x).double(), exact, atol=1e-4 + bound, rtol=0.0)
        out = case.out.clone()
        assert linear(case.x, out) is out
        torch.testing.assert_close(out.double(), exact, atol=1e-4 + bound, rtol=0.0)
        residual = case.residual.clone()
        assert linear.add_to(residual, case.x) is residual
        exact_sum = exact + case.residual.double()
        torch.testing.assert_close(residual.double(), exact_sum, atol=1e-4 + bound, rtol=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stages", [1, 3])
def test_one_row_is_rounded_once(device: torch.device, dtype: torch.dtype, shape: tuple[int, int], stages: int) -> None:
    case = Case(1, shape, dtype, device)
    vector = 16 // dtype.itemsize
    for block_n, num_warps in [(1, 1), (4, 2), (8, 1)]:
        tiles = GemvTiles(block_n, num_warps * 32 * vector, num_warps, stages)
        assert_rounded(gemv(case.x, case.weight, out=case.out.clone(), tiles=tiles), case.exact)
        everything = gemv(case.x, case.weight, case.bias, case.residual, case.out.clone(), tiles=tiles)
        assert_rounded(everything, case.exact + case.bias.double() + case.residual.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 5, 17])
def test_a_few_rows_are_rounded_once(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int], rows: int
) -> None:
    case = Case(rows, shape, dtype, device)
    tiles = SkinnyTiles(16, 128, 2, 3)
    apart = torch.cat((case.x, case.x), dim=1)[:, : shape[1]]
    for x in (case.x, apart):
        assert_rounded(skinny_product(x, case.weight, out=case.out.clone(), tiles=tiles), case.exact)
    everything = skinny_product(case.x, case.weight, case.bias, case.residual, case.out.clone(), tiles=tiles)
    assert_rounded(everything, case.exact + case.bias.double() + case.residual.double())


def test_a_row_among_a_few_has_the_bits_it_has_alone(device: torch.device) -> None:
    case = Case(6, (48, 640), torch.bfloat16, device)
    residual = -skinny_product(case.x, case.weight)  # leaves the last bits of the sums
    together = skinny_product(case.x, case.weight, residual=residual)
    assert together.count_nonzero() > 0
    for first in (0, 2, 5):
        assert torch.equal(skinny_product(case.x[first:], case.weight, residual=residual[first:]), together[first:])


def rms_norm(x: Tensor, norm: Norm, num_warps: int) -> Tensor:
    width = x.shape[1]
    out = torch.empty_like(x)
    block = 1 << (width - 1).bit_length()
    rms_norm_kernel[(1,)](x, norm.weight, out, width, norm.eps, WIDTH=width, BLOCK=block, num_warps=num_warps)
    return out


def silu_and_mul(gate_up: Tensor) -> Tensor:
    width = gate_up.shape[1] // 2
    out = torch.empty(1, width, dtype=gate_up.dtype, device=gate_up.device)
    silu_and_mul_kernel[(1, -(-width // 128))](gate_up, out, 2 * width, WIDTH=width, BLOCK=128)
    return out


@pytest.mark.parametrize("shape", [(16, 256), (38, 200), (10, 1104)])
@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("with_bias", [False, True])
def test_fused_products_have_the_bits_of_the_kernels_one_by_one(
    device: torch.device, shape: tuple[int, int], stages: int, with_bias: bool
) -> None:
    case = Case(1, shape, torch.bfloat16, device)
    bias = case.bias if with_bias else None
    norm = Norm(random(shape[1], seed=4, dtype=torch.bfloat16, device=device), 1e-5)
    tiles = GemvTiles(4, 512, 2, stages)
    linear = CudaLinear(case.weight, bias, tiles=tiles)
    for num_warps in (1, 8):
        normed = rms_norm(case.x * 3, norm, num_warps)
        alone = linear(normed)
        assert torch.equal(linear.normed(case.x * 3, norm, case.out.clone()), alone)
        # outputs a program do not change a sum
        narrow = CudaLinear(case.weight, bias, tiles=GemvTiles(2, 512, 2, stages))
        out = poisoned(1, shape[0] // 2, dtype=torch.bfloat16, device=device)
        assert torch.equal(narrow.normed_and_gated(case.x * 3, norm, out), silu_and_mul(alone))
        early = CudaLinear(case.weight, bias, tiles=dependent(tiles))
        assert torch.equal(early.normed(case.x * 3, norm), alone)
    assert torch.equal(gemv(normed, case.weight, bias, is_gated=True, tiles=tiles), silu_and_mul(alone))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("rows", [1, 4, 40])
def test_products_are_captured_in_a_graph(device: torch.device, rows: int) -> None:
    """A replay reads what its inputs hold by then."""
    case = Case(rows, (4096, 1024), torch.bfloat16, device)
    norm = Norm(torch.ones(1024, dtype=torch.bfloat16, device=device), 1e-5)
    linear = CudaLinear(case.weight, case.bias, skinny_rows=16, tiles=dependent(choose_tiles(4096, 1024, 2)))
    x, residual = torch.zeros_like(case.x), torch.zeros_like(case.residual)

    def run() -> list[Tensor]:
        products = [linear(x, case.out), linear.add_to(residual, x)]
        return [*products, linear.normed_and_gated(x, norm)] if rows == 1 else products

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    x.copy_(case.x)
    residual.copy_(case.residual)
    graph.replay()
    results = [result.clone() for result in captured]
    residual.copy_(case.residual)
    for result, expected in zip(results, run(), strict=True):
        assert torch.equal(result, expected)
    assert_rounded(results[0], case.exact + case.bias.double())


def test_it_is_a_linear_layer(device: torch.device) -> None:
    linear: Linear = CudaLinear(torch.ones(3, 8, device=device))
    assert linear.is_kernel


@pytest.mark.parametrize("outputs", [128, 1536, 4096, 6144, 28672, 128256])
@pytest.mark.parametrize("inputs", [8, 100, 256, 1024, 4096, 14336])
@pytest.mark.parametrize("element_size", [2, 4])
def test_tiles_make_many_programs_and_fit_the_threads(outputs: int, inputs: int, element_size: int) -> None:
    for is_gated in (False, True):
        tiles = choose_tiles(outputs, inputs, element_size, is_gated)
        programs = outputs // (1 + is_gated) // tiles.block_n
        assert programs >= 512 or tiles.block_n == 1
        assert tiles.block_k == tiles.num_warps * 512 // element_size
        assert tiles.num_warps == 1 or tiles.block_k <= inputs
        # sums of fused and plain products are the same
        plain = choose_tiles(outputs, inputs, element_size)
        assert (tiles.block_k, tiles.num_warps) == (plain.block_k, plain.num_warps)
