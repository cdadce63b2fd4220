"""The GPU's attention against the oracle, and how the keys of decode rows are shared out."""

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from attention_steps import SCALE, TOLERANCE, Heads, Step, assert_close, make_step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from albireo.gpu_worker.attention.oracle import OracleAttention
from albireo.gpu_worker.cuda.attention import DecodeTiles, TritonAttention
from albireo.gpu_worker.cuda.kernels.decode_attention import find_share

# Triton's interpreter reads a loop's bounds so
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")

BF16 = torch.bfloat16
SHAPES = [
    Heads(8, 2, 128, 16, BF16),
    Heads(7, 1, 64, 8, BF16),
    Heads(4, 4, 80, 32, BF16),
    Heads(8, 1, 96, 16),
    Heads(6, 2, 64, 16),
    Heads(2, 1, 256, 64, BF16),
]
"""Few, since each is compiled: groups 1 to 8, with and without a power of two."""
DECODES = [5, 0, 17, 200, 129]
CHUNKS = [(3, 3), (40, 16), (0, 2), (130, 70)]


def small_shares(block_n: int = 32) -> TritonAttention:
    """So few keys a share that short rows have several."""
    return TritonAttention(4, DecodeTiles(block_n, shares_per_processor=2, least_tokens=block_n))


def expected(step: Step, window: int | None = None) -> Tensor:
    return step.attend(OracleAttention(), window)


@pytest.mark.parametrize("heads", SHAPES, ids=lambda heads: f"{heads.num_heads}-{heads.num_kv_heads}x{heads.head_dim}")
def test_agrees_with_the_oracle(device: torch.device, heads: Heads) -> None:
    step = make_step(DECODES, CHUNKS, heads).to(device)
    for window in (None, 21):
        assert_close(step.attend(small_shares(), window), expected(step, window))
    assert_close(step.attend(TritonAttention(4)), expected(step))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_agrees_with_the_oracle_on_any_mix(device: torch.device, data: st.DataObject) -> None:
    decodes = data.draw(st.lists(st.integers(0, 40) | st.integers(0, 500), max_size=4))
    chunk = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(0) | st.integers(n, n + 200), st.just(n)))
    chunks = data.draw(st.lists(chunk, min_size=0 if decodes else 1, max_size=2))
    window = data.draw(st.none() | st.integers(1, 200))
    heads = data.draw(st.sampled_from(SHAPES))
    step = make_step(decodes, chunks, heads, seed=data.draw(st.integers(0, 2**31))).to(device)
    bound = step.batch.max_seq_len + data.draw(st.sampled_from([0, 1, 1000]))
    step = replace(step, batch=replace(step.batch, max_seq_len=bound))
    assert_close(step.attend(small_shares(), window), expected(step, window))


@pytest.mark.parametrize("window", [None, 130])
def test_how_rows_are_shared_out_changes_nothing_but_the_last_bits(device: torch.device, window: int | None) -> None:
    step = make_step([400, 3, 0, 256, 257], [], Heads()).to(device)
    lone = step.attend(TritonAttention(1, DecodeTiles(32, least_tokens=4096)), window)
    for shares, least_tokens in ((1, 32), (3, 64)):
        tiles = DecodeTiles(32, shares_per_processor=shares, least_tokens=least_tokens)
        torch.testing.assert_close(step.attend(TritonAttention(1, tiles), window), lone, rtol=0, atol=2e-6)
    # more than the combining kernel takes at a time
    several = step.attend(TritonAttention(40, DecodeTiles(16, least_tokens=16)), window)
    torch.testing.assert_close(several, lone, rtol=0, atol=2e-6)
    assert not torch.equal(several, lone), "nothing was shared out"


def test_one_call_serves_any_lengths_up_to_its_bound(device: torch.device) -> None:
    """As a captured step does: the lengths, slots and blocks that it reads are those of the replay."""
    steps = [make_step(lengths, [], Heads(4, 2, 64), seed=7).to(device) for lengths in ([520, 9, 300], [2, 530, 0])]
    first, attention = steps[0], small_shares()
    num_blocks = max(len(step.k_cache) for step in steps)
    shape = (num_blocks, *first.k_cache.shape[1:])
    k_cache, v_cache = (torch.zeros(shape, device=device) for _ in range(2))
    table = torch.zeros(len(first.batch.block_table), 40, dtype=torch.int32, device=device)
    batch = replace(first.batch, block_table=table, max_seq_len=100_000)
    q, out = torch.zeros_like(first.q), torch.zeros_like(first.q)

    def call() -> None:
        attention.attend(q, k_cache, v_cache, batch, SCALE, None, out)

    if device.type == "cuda":
        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    for step in steps:
        k_cache[: len(step.k_cache)], v_cache[: len(step.v_cache)] = step.k_cache, step.v_cache
        table[:, : step.batch.block_table.shape[1]] = step.batch.block_table
        for name in ("slots", "seq_lens"):
            getattr(batch, name).copy_(getattr(step.batch, name))
        q.copy_(step.q)
        out.fill_(9.0)
        if device.type == "cuda":
            graph.replay()
        else:
            call()
        assert_close(out, expected(step))


def test_dead_and_padded_rows_become_zero(device: torch.device) -> None:
    step = make_step([70, 0, 30, 0], [(0, 5), (9, 9)], Heads()).to(device)
    step.batch.slots[3] = -1
    for attention in (small_shares(), TritonAttention()):
        out = step.attend(attention)
        assert not out[[1, 3]].any() and not out[4:9].any()
        assert out[[0, 2]].all() and out[9:].all()


def test_blocks_that_a_window_has_left_are_not_read(device: torch.device) -> None:
    step = make_step([400], [(400, 30)], Heads()).to(device)
    window = 100
    want = expected(step, window)
    slot, owned = step.batch.slots, step.batch.block_table[step.batch.slots.long()].flatten().tolist()
    nobodys = next(i for i in range(len(step.k_cache)) if i not in owned)
    step.batch.block_table[slot[0], : (400 - window) // 16] = nobodys
    step.batch.block_table[slot[1], : (400 - 29 - window) // 16] = nobodys
    assert_close(step.attend(small_shares(), window), want)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_sequence_of_nan_leaves_the_others_alone(device: torch.device) -> None:
    step = make_step([200, 40], [(100, 100)], Heads()).to(device)
    want = expected(step)
    blocks = step.batch.block_table[step.batch.slots[0], : -(-200 // 16)].long()
    step.k_cache[blocks] = step.v_cache[blocks] = torch.nan
    got = step.attend(small_shares())
    assert got[0].isnan().all()
    assert_close(got[1:], want[1:])


def test_output_may_be_a_part_of_something_wider(device: torch.device) -> None:
    step = make_step([90, 4], [(60, 20)], Heads()).to(device)
    wide = torch.full((len(step.q), 6, 100), 9.0, device=device)
    small_shares().attend(step.q, step.k_cache, step.v_cache, step.batch, SCALE, None, wide[:, 1:5, :64])
    assert_close(wide[:, 1:5, :64], expected(step))
    assert (wide[:, [0, 5]] == 9).all() and (wide[:, :, 64:] == 9).all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_keys_and_values_go_where_the_slot_mapping_says_and_nowhere_else(
    device: torch.device, dtype: torch.dtype
) -> None:
    step = make_step([5, 0, 33], [(60, 40), (0, 3)], Heads(3, 3, 80, 8, dtype)).to(device)
    got, want = ((step.k_cache.clone(), step.v_cache.clone()) for _ in range(2))
    TritonAttention().write_kv(step.k, step.v, *got, step.batch)
    OracleAttention().write_kv(step.k, step.v, *want, step.batch)
    assert not torch.equal(got[0].nan_to_num(7.0), step.k_cache.nan_to_num(7.0))
    for ours, oracles in zip(got, want, strict=True):
        assert torch.equal(ours.nan_to_num(7.0), oracles.nan_to_num(7.0))


@triton.jit(do_not_specialize=["num_rows", "num_shares", "least_tiles"])  # type: ignore[untyped-decorator]
def share_kernel(  # type: ignore[no-untyped-def]  # noqa: ANN201
    seq_lens,  # noqa: ANN001
    found,  # noqa: ANN001
    num_rows,  # noqa: ANN001
    num_shares,  # noqa: ANN001
    least_tiles,  # noqa: ANN001
    ROWS: tl.constexpr,  # noqa: N803
):
    share = tl.program_id(0)
    row, first, count = find_share(share, seq_lens, num_rows, num_shares, least_tiles, 0, False, 16, 16, ROWS)
    tl.store(found + 3 * share, row)
    tl.store(found + 3 * share + 1, first)
    tl.store(found + 3 * share + 2, count)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tiles=st.lists(st.integers(0, 4) | st.integers(0, 500), min_size=1, max_size=70),
    num_shares=st.integers(1, 40),
)
def test_shares_of_all_rows_are_few_and_about_equal(device: torch.device, tiles: list[int], num_shares: int) -> None:
    seq_lens = torch.tensor([max(0, 16 * n - 7) for n in tiles], dtype=torch.int32, device=device)
    grid = len(tiles) + num_shares
    found = torch.zeros(grid, 3, dtype=torch.int32, device=device)
    share_kernel[(grid,)](seq_lens, found, len(tiles), num_shares, 2, ROWS=32)
    fair = max(2, -(-sum(tiles) // num_shares))
    share = 0
    for row, n in enumerate(tiles):
        count = max(1, -(-n // fair))
        assert found[share : share + count].tolist() == [[row, share, count]] * count
        share += count
    assert share <= grid
    assert (found[share:, 0] == len(tiles)).all(), "what is left is nobody's"
