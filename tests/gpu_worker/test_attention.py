"""The CPU attention against the oracle, and against itself: alone, in batches, in chunks, on one and two threads."""

import logging
from itertools import pairwise

import pytest
import torch
from attention_steps import SCALE, TOLERANCE, Heads, assert_close, make_step
from hypothesis import given, settings
from hypothesis import strategies as st

from albireo.gpu_worker.attention.cpu import CpuAttention, make_attention
from albireo.gpu_worker.attention.oracle import OracleAttention


@pytest.fixture(scope="module")
def attentions() -> dict[torch.dtype, CpuAttention]:
    """One for all tests: its scratch carries over from one shape to the next, as it must be able to."""
    return {dtype: CpuAttention(dtype, num_threads=2) for dtype in TOLERANCE}


MIXED = ([5, 0, 17, 512, 513, 300], [(3, 3), (40, 16), (0, 2), (600, 70), (513, 1), (129, 128)])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size"),
    [(16, 8, 128, 16), (7, 1, 64, 8), (4, 4, 80, 32), (8, 1, 32, 16), (4, 1, 256, 16), (8, 4, 96, 8), (3, 3, 16, 512)],
)
def test_agrees_with_the_oracle(
    attentions: dict[torch.dtype, CpuAttention],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
) -> None:
    step = make_step(*MIXED, Heads(num_heads, num_kv_heads, head_dim, block_size, dtype))
    for window in (None, 1, 5, 16, 100, 520, 10_000):
        assert_close(step.attend(attentions[dtype], window), step.attend(OracleAttention(), window))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_agrees_with_the_oracle_on_any_mix(data: st.DataObject, attentions: dict[torch.dtype, CpuAttention]) -> None:
    decodes = data.draw(st.lists(st.one_of(st.integers(0, 40), st.integers(0, 1200)), max_size=6))
    chunk = st.integers(1, 150).flatmap(lambda n: st.tuples(st.just(0) | st.integers(n, n + 300), st.just(n)))
    chunks = data.draw(st.lists(chunk, min_size=0 if decodes else 1, max_size=3))
    window = data.draw(st.none() | st.integers(1, 200))
    heads = data.draw(
        st.builds(
            lambda kv, group, dim, size, dtype: Heads(kv * group, kv, dim, size, dtype),
            st.sampled_from([1, 2, 3, 4, 8]),
            st.sampled_from([1, 2, 4, 7, 8]),
            st.sampled_from([16, 32, 64, 80, 96, 128]),
            st.sampled_from([8, 16, 32]),
            st.sampled_from(list(TOLERANCE)),
        )
    )
    step = make_step(decodes, chunks, heads, seed=data.draw(st.integers(0, 2**31)))
    assert_close(step.attend(attentions[heads.dtype], window), step.attend(OracleAttention(), window))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_row_has_the_same_bits_alone_and_in_a_batch(
    attentions: dict[torch.dtype, CpuAttention], dtype: torch.dtype
) -> None:
    step = make_step([1500, 0, 7, 513, *range(30, 60)], [(1100, 90), (20, 20)], Heads(6, 2, 64, dtype=dtype))
    for window in (None, 600):
        together = step.attend(attentions[dtype], window)
        for i in range(len(step.lengths)):
            rows = slice(step.batch.query_start[i], step.batch.query_start[i + 1])
            assert torch.equal(step.only(i).attend(attentions[dtype], window), together[rows])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("window", [None, 50])
def test_a_prompt_has_the_same_bits_in_one_chunk_and_in_several(
    attentions: dict[torch.dtype, CpuAttention], dtype: torch.dtype, window: int | None
) -> None:
    step = make_step([], [(300, 200)], Heads(6, 2, 64, dtype=dtype))
    whole = step.attend(attentions[dtype], window)
    bounds = [0, 1, 18, 64, 129, 200]
    pieces = [step.only(0, slice(i, j)).attend(attentions[dtype], window) for i, j in pairwise(bounds)]
    assert torch.equal(torch.cat(pieces), whole)


def test_the_number_of_threads_changes_no_bit(attentions: dict[torch.dtype, CpuAttention]) -> None:
    step = make_step([1500, 7, 513, 2048], [(1100, 90)], Heads())
    assert torch.equal(step.attend(CpuAttention(torch.float32, num_threads=1)), step.attend(attentions[torch.float32]))


def test_blocks_that_a_window_has_left_are_not_read(attentions: dict[torch.dtype, CpuAttention]) -> None:
    step = make_step([700], [(700, 30)], Heads())
    window = 100
    expected = step.attend(OracleAttention(), window)
    slot = step.batch.slots
    step.batch.block_table[slot[0], : (700 - window) // 16] = -1
    step.batch.block_table[slot[1], : (700 - 29 - window) // 16] = -1
    assert_close(step.attend(attentions[torch.float32], window), expected)


def test_a_dead_rows_output_is_zero(attentions: dict[torch.dtype, CpuAttention]) -> None:
    step = make_step([20, 0, 30], [(0, 5), (9, 9)], Heads())
    out = step.attend(attentions[torch.float32])
    assert not out[1].any() and not out[3:8].any()
    assert out[[0, 2]].all() and out[8:].all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("attention", ["oracle", "cpu"])
def test_keys_and_values_go_where_the_slot_mapping_says_and_nowhere_else(
    attentions: dict[torch.dtype, CpuAttention], attention: str, dtype: torch.dtype
) -> None:
    step = make_step([5, 0, 33], [(600, 400), (0, 3)], Heads(3, 3, 80, 8, dtype))
    writer = attentions[dtype] if attention == "cpu" else OracleAttention()
    caches = step.k_cache.clone(), step.v_cache.clone()
    writer.write_kv(step.k, step.v, *caches, step.batch)
    for cache, before, rows in zip(caches, (step.k_cache, step.v_cache), (step.k, step.v), strict=True):
        expected = before.clone()
        for token, slot in enumerate(step.batch.slot_mapping.tolist()):
            if slot >= 0:
                expected[slot // 8, :, slot % 8] = rows[token]
        assert torch.equal(cache.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_a_request_full_of_nan_leaves_nothing_behind(attentions: dict[torch.dtype, CpuAttention]) -> None:
    healthy = make_step([1200, 40], [(100, 100)], Heads())
    before = healthy.attend(attentions[torch.float32])
    broken = make_step([1200, 40], [(100, 100)], Heads())
    for tensor in (broken.q, broken.k_cache, broken.v_cache):
        tensor.fill_(torch.nan)
    assert broken.attend(attentions[torch.float32]).isnan().all()
    assert torch.equal(healthy.attend(attentions[torch.float32]), before)


def test_the_oracle_is_torchs_attention() -> None:
    step = make_step([], [(50, 50)], Heads(4, 4, 32))
    positions = step.batch.slot_mapping
    q = step.q.transpose(0, 1)
    k, v = (cache[positions // 16, :, positions % 16].transpose(0, 1) for cache in (step.k_cache, step.v_cache))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE)
    assert_close(step.attend(OracleAttention()), expected.transpose(0, 1))


def test_sizes_without_a_kernel_fall_back_to_the_oracle(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        attention = make_attention(torch.float32, num_heads=4, num_kv_heads=2, head_dim=40, block_size=16)
    assert isinstance(attention, OracleAttention)
    assert "heads of 40" in caplog.text
    assert isinstance(make_attention(torch.float32, 4, 2, 64, 16), CpuAttention)


def test_dtypes_without_attention_are_refused() -> None:
    with pytest.raises(ValueError, match="float16"):
        make_attention(torch.float16, num_heads=4, num_kv_heads=2, head_dim=64, block_size=16)
