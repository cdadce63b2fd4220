"""The GPU's element-wise operations against the plain formulas and against `TorchLayerOps`."""

from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor
from torch.nn import functional

from albireo.checkpoint import ModelConfig, RopeConfig
from albireo.gpu_worker.attention.batch import AttentionBatch
from albireo.gpu_worker.attention.oracle import OracleAttention
from albireo.gpu_worker.backend import LayerOps
from albireo.gpu_worker.cuda.embedding import look_up_embedding
from albireo.gpu_worker.cuda.layer_ops import TritonLayerOps
from albireo.gpu_worker.layer_ops import TorchLayerOps
from albireo.gpu_worker.rope import rope_table

CONFIG = ModelConfig(
    architecture="Qwen3ForCausalLM", vocab_size=512, hidden_size=96, intermediate_size=176, num_layers=1,
    num_heads=6, num_kv_heads=2, head_dim=64, rms_norm_eps=1e-5, rope=RopeConfig(), max_position_embeddings=256,
    tie_word_embeddings=True, qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm=True, sliding_windows=(None,),
    dtype="bfloat16", eos_token_ids=(), bos_token_id=None,
)  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16]
BLOCK_SIZE, NUM_BLOCKS = 16, 5


def random(*shape: int, seed: int = 0, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def assert_rounded(ours: Tensor, exact: Tensor) -> None:
    """`ours` is `exact` (fp64) rounded once to its dtype, up to fp32's own roundings before."""
    unit = bf16_unit(ours.device) if ours.dtype == torch.bfloat16 else 2.0**-22
    torch.testing.assert_close(ours.double(), exact, atol=4e-6, rtol=unit * 1.01)


def bf16_unit(device: torch.device) -> float:
    """Relative error of one rounding to bf16; Triton's interpreter cuts off instead."""
    return 2.0**-8 if device.type == "cuda" else 2.0**-7


def make_ops(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> TritonLayerOps:
    return TritonLayerOps(config, rope_table(config.rope, config.head_dim, 256).to(device), dtype)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors are full of NaN, so that an element which no kernel writes is seen."""
    empty = torch.empty

    def poisoned(*shape: Any, **settings: Any) -> Tensor:
        new = empty(*shape, **settings)
        return new.fill_(torch.nan) if new.is_floating_point() else new

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 96), (3, 5), (5, 1000), (2, 4096)])
def test_rms_norm_divides_by_the_root_mean_square(
    device: torch.device, dtype: torch.dtype, rows: int, width: int
) -> None:
    ops = make_ops(CONFIG, dtype, device)
    x = random(rows, 2 * width, dtype=dtype, device=device) * 3
    weight = random(width, seed=1, dtype=dtype, device=device)
    for part in (x[:, :width].contiguous(), x[:, width:]):
        wide = part.double()
        exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
        assert_rounded(ops.rms_norm(part, weight), exact)
    tiny = torch.zeros(1, width, dtype=dtype, device=device)
    assert torch.equal(ops.rms_norm(tiny, weight), tiny)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 176), (5, 1100)])
def test_gate_is_a_silu(device: torch.device, dtype: torch.dtype, rows: int, width: int) -> None:
    ops = make_ops(CONFIG, dtype, device)
    wide = random(rows, 2 * width + 8, dtype=dtype, device=device) * 8
    for gate_up in (wide[:, : 2 * width], wide[:, : 2 * width].contiguous()):
        gate, up = gate_up.double().chunk(2, -1)
        assert_rounded(ops.silu_and_mul(gate_up), functional.silu(gate) * up)


def test_gate_is_exact_at_its_ends(device: torch.device) -> None:
    extremes = torch.tensor([-1e30, -1000.0, -88.0, -1e-30, -0.0, 0.0, 1e-30, 88.0, 1000.0, 1e30], device=device)
    ours = make_ops(CONFIG, torch.float32, device).silu_and_mul(torch.cat((extremes, torch.ones_like(extremes)))[None])
    torch.testing.assert_close(ours[0], functional.silu(extremes), atol=1e-30, rtol=1e-6)


def store_at(slot_mapping: Tensor) -> AttentionBatch:
    """A batch of which nothing but the places of its keys and values is read."""
    unused = torch.zeros(0, dtype=torch.int32)
    return AttentionBatch(unused, unused, unused, unused, slot_mapping, 0, 0, 0)


def rotated(heads: Tensor, positions: Tensor) -> Tensor:
    """Pairs (i, i + head_dim / 2) as complex numbers, turned by position * theta ** (-2i / head_dim)."""
    half = heads.shape[-1] // 2
    turns = positions[:, None].double() * 10_000.0 ** (-torch.arange(half, device=heads.device).double() / half)
    pairs = torch.complex(heads[..., :half].double(), heads[..., half:].double())
    turned = pairs * torch.polar(torch.ones_like(turns), turns)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize(
    ("head_dim", "heads", "kv_heads", "n"),
    [(64, 6, 2, 4), (80, 3, 1, 5), (96, 4, 4, 1), (128, 32, 8, 2), (256, 5, 1, 3)],
)
def test_queries_and_keys_are_turned_by_their_positions_and_stored_with_the_values(
    device: torch.device, dtype: torch.dtype, with_norm: bool, head_dim: int, heads: int, kv_heads: int, n: int
) -> None:
    """The third token is not stored; whatever else the pages hold stays."""
    config = replace(CONFIG, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, qk_norm=with_norm)
    qkv = random(n, (heads + 2 * kv_heads) * head_dim, dtype=dtype, device=device)
    weight = random(heads + kv_heads, head_dim, seed=1, dtype=dtype, device=device) if with_norm else None
    positions = torch.tensor([255, 3, 0, 17, 100][:n], device=device)
    slots = torch.tensor([79, 0, -1, 33, 16][:n], device=device)
    split = qkv.view(n, -1, head_dim)
    turned = split[:, : heads + kv_heads].double()
    if weight is not None:
        turned = turned / (turned.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    turned = rotated(turned, positions)
    expected = torch.full((2, NUM_BLOCKS, kv_heads, BLOCK_SIZE, head_dim), 7.0, dtype=torch.float64, device=device)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[0, slot // BLOCK_SIZE, :, slot % BLOCK_SIZE] = turned[token, heads:]
            expected[1, slot // BLOCK_SIZE, :, slot % BLOCK_SIZE] = split[token, heads + kv_heads :].double()
    ops = make_ops(config, dtype, device)
    for index in (positions, positions.int()):
        caches = torch.full_like(expected, 7.0, dtype=dtype)
        queries = ops.rotate_and_store(qkv, weight, ops.look_up(index), caches[0], caches[1], store_at(slots))
        assert queries.shape == (n, heads, head_dim)
        # fp32 angles of the table against fp64 ones
        absolute, relative = (1e-4, 0.0) if dtype == torch.float32 else (1e-4, bf16_unit(device) * 1.01)
        torch.testing.assert_close(queries.double(), turned[:, :heads], atol=absolute, rtol=relative)
        torch.testing.assert_close(caches[0].double(), expected[0], atol=absolute, rtol=relative)
        assert torch.equal(caches[1].double(), expected[1])


@pytest.mark.parametrize("with_norm", [False, True])
def test_all_operations_agree_with_torch_calls_in_fp32(device: torch.device, with_norm: bool) -> None:
    config, dtype = replace(CONFIG, qk_norm=with_norm), torch.float32
    ops: LayerOps = make_ops(config, dtype, device)
    reference = TorchLayerOps(config, rope_table(config.rope, 64, 256).to(device), dtype, OracleAttention())
    x, gate_up = random(3, 96, dtype=dtype, device=device), random(3, 352, seed=1, dtype=dtype, device=device)
    norm = random(96, seed=2, dtype=dtype, device=device)
    torch.testing.assert_close(ops.rms_norm(x, norm), reference.rms_norm(x, norm), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ops.silu_and_mul(gate_up), reference.silu_and_mul(gate_up), atol=1e-6, rtol=1e-6)
    qkv = random(3, 640, seed=3, dtype=dtype, device=device)
    qk_norm = random(8, 64, seed=4, dtype=dtype, device=device) if with_norm else None
    positions, slots = torch.tensor([7, 0, 200], device=device), torch.tensor([5, -1, 70], device=device)
    results = []
    for either in (ops, reference):
        caches = torch.zeros(2, NUM_BLOCKS, 2, BLOCK_SIZE, 64, device=device)
        looked_up = either.look_up(positions)
        query = either.rotate_and_store(qkv, qk_norm, looked_up, caches[0], caches[1], store_at(slots))
        results.append((query, caches))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=2e-6)


@pytest.mark.parametrize("n", [1, 3])
def test_padding_rows_store_nothing_and_have_finite_queries(device: torch.device, n: int) -> None:
    """The caches are the middle of a larger tensor: a store in front of them or behind them is seen too."""
    ops, dtype = make_ops(CONFIG, torch.bfloat16, device), torch.bfloat16
    qkv = torch.zeros(n, 640, dtype=dtype, device=device)
    weight = torch.ones(8, 64, dtype=dtype, device=device)
    memory = torch.full((2, 3, NUM_BLOCKS, 2, BLOCK_SIZE, 64), 7.0, dtype=dtype, device=device)
    positions, slots = torch.zeros(n, dtype=torch.int64, device=device), torch.full((n,), -1, device=device)
    query = ops.rotate_and_store(qkv, weight, ops.look_up(positions), memory[0, 1], memory[1, 1], store_at(slots))
    assert query.isfinite().all()
    assert (memory == 7.0).all()


def test_no_rows_are_no_work(device: torch.device) -> None:
    ops, dtype = make_ops(CONFIG, torch.bfloat16, device), torch.bfloat16
    caches = torch.zeros(2, NUM_BLOCKS, 2, BLOCK_SIZE, 64, dtype=dtype, device=device)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    weight = torch.ones(96, dtype=dtype, device=device)
    assert ops.rms_norm(weight[None][:0], weight).shape == (0, 96)
    assert ops.silu_and_mul(weight[None][:0]).shape == (0, 48)
    qkv = torch.zeros(0, 640, dtype=dtype, device=device)
    assert ops.rotate_and_store(qkv, None, none, caches[0], caches[1], store_at(none)).shape == (0, 6, 64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_embedding_gathers_rows_and_gives_zeros_for_tokens_of_others(
    device: torch.device, dtype: torch.dtype, index: torch.dtype
) -> None:
    table = random(7, 1030, dtype=dtype, device=device)
    tokens = torch.tensor([0, 6, -1, 3, 7], dtype=index, device=device)
    found = look_up_embedding(table, tokens)
    assert torch.equal(found[[0, 1, 3]], table[[0, 6, 3]])
    assert not found[[2, 4]].any()
    later = look_up_embedding(table, torch.tensor([102, 99, 107, -1], dtype=index, device=device), first_token=100)
    assert torch.equal(later[0], table[2])
    assert not later[1:].any()
