"""Step times against numbers that were worked out by hand, and what no step time may do."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from round_numbers import device, model

from albireo.checkpoint.structs import CheckpointError
from albireo.config import SamplingMode
from albireo.sim.roofline import KERNELS_PER_LAYER, KERNELS_PER_STEP, Roofline, StepWork, chunk_pairs
from albireo.sim.spec import Efficiency, Link, Overhead, Sampling, preset_names, read_spec

LAYER_WEIGHTS = 512 * (8 + 2 * 4) * 64 + 8 * 64 * 512 + 3 * 512 * 1024
"""q, k and v; o; gate, up and down."""
LAYER_VECTORS = (512 + 1024) + (512 + 512) + (512 + 2048) + (1024 + 512)
"""Elements that a token's products read and write."""
LAYER_ELEMENTWISE = 2 * 4 * 512 + 2 * (512 + 2 * 256) + 3 * 1024
NOTHING_READ = device(memory_bandwidth=1e20)


def test_few_rows_take_the_time_of_the_bytes() -> None:
    times = Roofline(model(), 1, "bfloat16", device()).step(StepWork.decode(3, 100))
    per_token = 2 * (LAYER_VECTORS + LAYER_ELEMENTWISE) + 4 * 512
    assert times.linear == pytest.approx(2 * (2 * LAYER_WEIGHTS + 3 * per_token) / 1e9)
    keys = 300 * 2 * 4 * 64 * 2
    queries = 3 * (2 * 512 + 2 * 256) * 2
    assert times.attention == pytest.approx(2 * (keys + queries) / 1e9)
    assert times.lm_head == pytest.approx((512 * 2048 * 2 + 3 * (512 * 2 + 2048 * 4)) / 1e9)
    assert times.total == pytest.approx(times.linear + times.attention + times.lm_head)


def test_a_prompt_takes_the_time_of_its_arithmetic() -> None:
    times = Roofline(model(), 1, "bfloat16", NOTHING_READ).step(StepWork.prefill(2, 500, start=100))
    assert times.linear == pytest.approx(2 * 1000 * 2 * LAYER_WEIGHTS / 1e12)
    assert times.attention == pytest.approx(2 * 2 * chunk_pairs(100, 500) * 4 * 512 / 1e12)
    assert times.lm_head == pytest.approx(2 * 2 * 512 * 2048 / 1e12)
    assert chunk_pairs(100, 500) == sum(100 + i for i in range(1, 501))


def test_efficiencies_and_dtypes_divide_the_rates() -> None:
    spec = device(memory_bandwidth=1e20, efficiency=Efficiency(0.5, 1.0, 0.25, 1.0, 1.0))
    work = StepWork.prefill(1, 500)
    whole, less = (Roofline(model(), 1, "bfloat16", each).step(work) for each in (NOTHING_READ, spec))
    assert less.linear == pytest.approx(2 * whole.linear)
    assert less.attention == pytest.approx(4 * whole.attention)
    assert Roofline(model(), 1, "float32", NOTHING_READ).step(work).linear == pytest.approx(2 * whole.linear)


def test_ranks_add_up_twice_a_layer_and_once_for_the_embedding() -> None:
    spec = device(link=Link(1e9, 1e-3))
    times = Roofline(model(), 4, "bfloat16", spec).step(StepWork.decode(8, 10))
    ring = 2 * (3 / 4) * (8 * 512 * 2) / 1e9
    assert times.all_reduce == pytest.approx(5 * (1e-3 + ring))
    assert Roofline(model(), 1, "bfloat16", spec).step(StepWork.decode(8, 10)).all_reduce == 0


@pytest.mark.parametrize(
    ("mode", "logits", "exchanged_bytes", "num_collectives"),
    [
        ("gathered", 10 * 2048, 10 * 2048 * 4, 1),
        ("sequence-parallel", 3 * 2048, 10 * 512 * 4 + 10 * 4, 2),
        ("local", 10 * 512, 4 * 10 * 64, 1),
    ],
)
def test_each_sampling_mode_moves_and_samples_its_part(
    mode: SamplingMode, logits: int, exchanged_bytes: int, num_collectives: int
) -> None:
    spec = device(link=Link(1e9, 1e-3), sampling=Sampling(0.002, 16.0))
    times = Roofline(model(), 4, "bfloat16", spec, mode).step(StepWork.decode(10, 10))
    assert times.sampling == pytest.approx(0.002 + 16 * logits / 1e9)
    assert times.sampling_exchange == pytest.approx(num_collectives * 1e-3 + 3 / 4 * exchanged_bytes / 1e9)
    assert times.sample == times.sampling + times.sampling_exchange


def test_only_rows_that_sample_go_through_the_head() -> None:
    unfinished = StepWork.prefill(1, 100)._replace(num_samples=0)
    times = Roofline(model(), 2, "bfloat16", device(sampling=Sampling(1.0, 1.0))).step(unfinished)
    assert times.lm_head == times.sampling == times.sampling_exchange == 0


def test_a_captured_step_has_its_kernels_starts_and_another_at_least_its_launches() -> None:
    spec = device(overhead=Overhead(step_s=0.5, kernel_s=1e-3, attention_s=0.01, launch_s=0.1))
    kernels = 2 * KERNELS_PER_LAYER + KERNELS_PER_STEP
    captured = Roofline(model(), 1, "bfloat16", spec)
    work = StepWork.decode(1, 1)
    assert captured.step(work).overhead == pytest.approx(0.5 + kernels * 1e-3)
    attention = Roofline(model(), 1, "bfloat16", device()).step(work).attention
    assert captured.step(work).attention == pytest.approx(attention + 2 * 0.01)
    eager = Roofline(model(), 1, "bfloat16", spec, is_eager=True)
    launches = 0.1 * (kernels + 2 + 10)
    assert eager.step(work).total == pytest.approx(launches)
    assert captured.step(StepWork.prefill(1, 1)).total == pytest.approx(launches)
    # the device is the slower one: launches are hidden
    longest = StepWork.prefill(1, 100_000)
    assert eager.step(longest).total > launches
    assert eager.step(longest) == captured.step(longest)


def test_a_window_bounds_what_queries_see() -> None:
    windowed = model(sliding_windows=(None, 50))
    work = StepWork.decode(4, 1000)
    both, one = (Roofline(each, 1, "bfloat16", device()).step(work).attention for each in (model(), windowed))
    assert one == pytest.approx(both - 4 * 950 * 2 * 4 * 64 * 2 / 1e9)


def test_copying_blocks_takes_the_host_link_s_time_at_what_is_had_of_it() -> None:
    assert Roofline(model(), 1, "bfloat16", device()).swap(10_000_000) == pytest.approx(0.1)
    spec = device(efficiency=Efficiency(1.0, 1.0, 1.0, 1.0, 1.0, host=0.8))
    assert Roofline(model(), 1, "bfloat16", spec).swap(10_000_000) == pytest.approx(0.125)


def test_a_degree_that_does_not_divide_the_heads_is_refused() -> None:
    with pytest.raises(CheckpointError, match="does not divide the model's 8 attention heads"):
        Roofline(model(), 3, "bfloat16", device())


def test_padding_is_computed_too() -> None:
    odd = model(intermediate_size=1020, vocab_size=2000)
    padded = model(intermediate_size=1024, vocab_size=2048)
    work = StepWork.decode(3, 100)
    one, other = (Roofline(each, 4, "bfloat16", device()).step(work) for each in (odd, padded))
    assert (one.linear, one.lm_head) == (other.linear, other.lm_head)


works = st.builds(
    StepWork,
    num_rows=st.integers(0, 512),
    context_tokens=st.integers(0, 10**7),
    num_chunk_tokens=st.integers(0, 8192),
    chunk_pairs=st.integers(0, 10**9),
    chunk_context_tokens=st.integers(0, 10**6),
    num_samples=st.integers(0, 512),
)
rooflines = st.builds(
    lambda name, size, mode, is_eager: Roofline(model(), size, "bfloat16", read_spec(name), mode, is_eager),
    st.sampled_from(preset_names()),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from(["gathered", "sequence-parallel", "local"]),
    st.booleans(),
)


@given(rooflines, works, st.sampled_from(StepWork._fields), st.integers(1, 1000))
def test_more_work_never_takes_less_time(roofline: Roofline, work: StepWork, field: str, more: int) -> None:
    larger = work._replace(**{field: getattr(work, field) + more})
    assert all(part >= 0 for part in roofline.step(work))
    # sums that are meant to be equal may differ in their last bits
    assert roofline.step(larger).total >= roofline.step(work).total * (1 - 1e-12)


@given(works, st.sampled_from(preset_names()), st.integers(0, 2))
def test_more_ranks_never_take_longer_to_compute(work: StepWork, name: str, power: int) -> None:
    spec = read_spec(name)
    fewer, more = (Roofline(model(), size, "bfloat16", spec) for size in (2**power, 2 ** (power + 1)))
    assert more.step(work).working <= fewer.step(work).working * (1 + 1e-12)


def test_what_it_takes_to_ask_does_not_grow_with_the_batch() -> None:
    roofline = Roofline(model(), 4, "bfloat16", read_spec("h100"))
    assert num_instructions(roofline, StepWork.decode(4096, 8192)) == num_instructions(roofline, StepWork.decode(1, 1))


def num_instructions(roofline: Roofline, work: StepWork) -> int:
    """That the interpreter runs for a step's times."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        roofline.step(work)
    finally:
        sys.settrace(before)
    assert count > 100
    return count


def test_the_h100_preset_is_near_what_was_measured_on_one() -> None:
    """docs/benchmarks/cuda.md: the shape of Llama 8B, contexts of 1,024, temperature and top_p, less the 0.1 ms of
    plans over the bus that the version of that table still had."""
    llama = model(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_layers=32, num_heads=32, num_kv_heads=8,
        head_dim=128, sliding_windows=(None,) * 32,
    )  # fmt: skip
    roofline = Roofline(llama, 1, "bfloat16", read_spec("h100"))
    for batch, measured_ms in ((1, 6.02), (8, 6.78), (64, 10.14), (256, 20.70)):
        assert roofline.step(StepWork.decode(batch, 1024)).total * 1e3 == pytest.approx(measured_ms, rel=0.06)


def test_ranks_on_one_cpu_take_from_each_other_what_contention_says() -> None:
    work = StepWork.decode(3, 100) + StepWork.prefill(1, 50)
    for size, factor in ((1, 1.0), (2, 1.25), (4, 1.75)):
        alone = Roofline(model(), size, "bfloat16", device()).step(work)
        together = Roofline(model(), size, "bfloat16", device(contention=0.25)).step(work)
        assert together.linear == pytest.approx(factor * alone.linear)
        assert together.attention == pytest.approx(factor * alone.attention)
        assert together.all_reduce == alone.all_reduce
