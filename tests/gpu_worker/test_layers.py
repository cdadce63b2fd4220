"""Linear layers and layer operations against the plain formulas, on one thread and on two."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor
from torch.nn import functional

from albireo.checkpoint import ModelConfig, RopeConfig
from albireo.gpu_worker import layers
from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.oracle import OracleAttention
from albireo.gpu_worker.backend import LayerOps
from albireo.gpu_worker.kernels.skinny_product import packed_as_expected
from albireo.gpu_worker.layer_ops import KernelLayerOps, TorchLayerOps
from albireo.gpu_worker.layers import PackedLinear, PlainLinear, make_linear
from albireo.gpu_worker.rope import rope_table

CONFIG = ModelConfig(
    architecture="Qwen3ForCausalLM", vocab_size=512, hidden_size=96, intermediate_size=176, num_layers=1,
    num_heads=6, num_kv_heads=2, head_dim=64, rms_norm_eps=1e-5, rope=RopeConfig(), max_position_embeddings=256,
    tie_word_embeddings=True, qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm=True, sliding_windows=(None,),
    dtype="bfloat16", eos_token_ids=(), bos_token_id=None,
)  # fmt: skip
ROWS = [1, 2, 3, 4, 5, 6, 7, 13, 19, 33, 49, 96, 97]
"""Tiles of all heights; several tiles a strip, a run, a group; what is left to oneDNN."""


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_rounded(ours: Tensor, exact: Tensor) -> None:
    """`ours` is `exact` (fp32) up to a rounding or two to its dtype, and up to fp32 sums taken in another order."""
    absolute, relative = (0.02, 2.0**-6) if ours.dtype == torch.bfloat16 else (1e-4, 1e-5)
    torch.testing.assert_close(ours.float(), exact, atol=absolute, rtol=relative)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(128, 96), (64, 32), (8192, 256), (100, 72)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_multiplies_and_adds(threads: int, dtype: torch.dtype, shape: tuple[int, int], with_bias: bool) -> None:
    weight = random(*shape, dtype=dtype)
    bias = random(shape[0], seed=1, dtype=dtype) if with_bias else None
    for linear in (make_linear(weight, bias), PlainLinear(weight, bias)):
        for n in ROWS:
            x, residual = random(n, shape[1], seed=2, dtype=dtype), random(n, shape[0], seed=3, dtype=dtype)
            exact = functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
            assert_rounded(linear(x), exact)
            assert_rounded(linear.add_to(residual, x), residual.float() + exact)


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="oneDNN's order of sums is known for AVX512-BF16")
def test_own_kernel_reads_the_layout_that_onednn_packs_into() -> None:
    linear = make_linear(random(128, 96))
    assert isinstance(linear, PackedLinear)
    assert linear._skinny is not None
    odd = make_linear(random(100, 72))
    assert isinstance(odd, PackedLinear)
    assert odd._skinny is None


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="oneDNN's order of sums is known for AVX512-BF16")
def test_own_kernel_is_not_used_where_onednn_sums_in_another_order(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(layers, "_SUMS_ALIKE", {})
    monkeypatch.setattr(layers, "run_pairs", lambda in_features: 96)  # sums cut into other runs than oneDNN's
    linear = make_linear(random(128, 1024))
    assert not linear.is_kernel
    assert "oneDNN sums 1024 inputs in another order" in caplog.text
    x = random(5, 1024)
    assert torch.equal(linear(x[:2].clone()), linear(x)[:2])


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="bf16 is not packed on this CPU")
def test_another_layout_is_noticed() -> None:
    weight = random(128, 96)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    assert packed_as_expected(weight, packed)
    for other in (weight.flip(0), weight.roll(1, 1), weight.roll(2, 0)):
        assert not packed_as_expected(other, packed)
    assert not packed_as_expected(random(128, 64), packed)


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="oneDNN's order of sums is known for AVX512-BF16")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 64), (320, 704), (256, 1024), (192, 1056), (128, 3072), (100, 2048)])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(
    threads: int, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    linear = make_linear(random(*shape, dtype=dtype), random(shape[0], seed=1, dtype=dtype))
    x = random(130, shape[1], seed=2, dtype=dtype)
    # In bf16, what is left of the product once its rounded value is taken away: the last bits of its sums.
    residual = -linear(x)
    together = linear.add_to(residual, x)
    assert dtype == torch.float32 or together.count_nonzero() > 0
    for n in (*ROWS, 12, 18, 64, 129):
        first = 130 - n
        assert torch.equal(linear(x[first:]), -residual[first:])
        assert torch.equal(linear.add_to(residual[first:], x[first:]), together[first:])


def both_ops(config: ModelConfig, dtype: torch.dtype) -> list[LayerOps]:
    table = rope_table(config.rope, config.head_dim, 256)
    return [TorchLayerOps(config, table, dtype, OracleAttention()), KernelLayerOps(config, table, dtype)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 5, 700])
def test_rms_norm_divides_by_the_root_mean_square(threads: int, dtype: torch.dtype, n: int) -> None:
    x, weight = random(n, 96, dtype=dtype) * 3, random(96, seed=1, dtype=dtype)
    exact = x.float() / (x.float().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.float()
    for ops in both_ops(CONFIG, dtype):
        assert_rounded(ops.rms_norm(x, weight), exact)


def rotated(heads: Tensor, positions: Tensor) -> Tensor:
    """Pairs (i, i + head_dim / 2) as complex numbers, turned by position * theta ** (-2i / head_dim)."""
    half = heads.shape[-1] // 2
    turns = positions[:, None].double() * 10_000.0 ** (-torch.arange(half).double() / half)
    pairs = torch.complex(heads[..., :half].double(), heads[..., half:].double())
    turned = pairs * torch.polar(torch.ones_like(turns), turns)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1).float()


def store_at(slot_mapping: Tensor) -> AttentionBatch:
    """A batch of which nothing but the places of its keys and values is read."""
    unused = torch.zeros(0, dtype=torch.int32)
    return AttentionBatch(unused, unused, unused, unused, slot_mapping, 0, 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("n", [1, 5, 300])
def test_queries_and_keys_are_turned_by_their_positions_and_stored_with_the_values(
    threads: int, dtype: torch.dtype, with_norm: bool, n: int
) -> None:
    """6 query and 2 key/value heads; every third token is not stored, and what it leaves untouched is looked at."""
    qkv, weight = random(n, 10 * 64, dtype=dtype), random(8, 64, seed=1, dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    positions = torch.randint(256, (n,), generator=generator)
    slots = torch.randperm(24 * 16, generator=generator)[:n]
    slots[2::3] = -1
    split = qkv.view(n, 10, 64)
    heads = split[:, :8].float()
    if with_norm:
        heads = heads / (heads.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.float()
    exact = rotated(heads, positions)
    expected = torch.full((2, 24, 2, 16, 64), 7.0)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[0, slot // 16, :, slot % 16] = exact[token, 6:]
            expected[1, slot // 16, :, slot % 16] = split[token, 8:].float()
    for ops in both_ops(replace(CONFIG, num_heads=6, num_kv_heads=2, qk_norm=with_norm), dtype):
        caches = torch.full((2, 24, 2, 16, 64), 7.0, dtype=dtype)
        norm = weight if with_norm else None
        queries = ops.rotate_and_store(qkv, norm, ops.look_up(positions), caches[0], caches[1], store_at(slots))
        assert queries.shape == (n, 6, 64)
        absolute, relative = (1e-4, 0.0) if dtype == torch.float32 else (0.04, 2.0**-6)
        torch.testing.assert_close(queries.float(), exact[:, :6], atol=absolute, rtol=relative)
        torch.testing.assert_close(caches[0].float(), expected[0], atol=absolute, rtol=relative)
        assert torch.equal(caches[1].float(), expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 5, 400])
def test_gate_is_a_silu(threads: int, dtype: torch.dtype, n: int) -> None:
    gate_up = random(n, 2 * 176, dtype=dtype) * 8
    exact = functional.silu(gate_up[:, :176].float()) * gate_up[:, 176:].float()
    for ops in both_ops(CONFIG, dtype):
        torch.testing.assert_close(ops.silu_and_mul(gate_up).float(), exact, atol=1e-4, rtol=2.0**-6)


def test_gate_is_exact_at_its_ends() -> None:
    extremes = torch.tensor([-1e30, -1000.0, -88.0, -1e-30, -0.0, 0.0, 1e-30, 88.0, 1000.0, 1e30, *[1.0] * 6])
    gate_up = torch.cat((extremes, torch.ones(16)))[None]
    torch_ops, kernel_ops = both_ops(CONFIG, torch.float32)
    expected: Any = functional.silu(extremes)[None]
    torch.testing.assert_close(torch_ops.silu_and_mul(gate_up), expected)
    torch.testing.assert_close(kernel_ops.silu_and_mul(gate_up), expected, atol=1e-30, rtol=1e-6)
