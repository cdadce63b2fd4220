"""The CUDA device against the CPU's, which is held to transformers: the same tokens in float32, whatever is asked for.

Where there is no GPU its kernels run in Triton's interpreter: everything but graphs, streams and clocks, slowly, so
that most of this is left to `make test-slow`; with a GPU it runs on that.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline import Pipeline
from sampled_requests import EOS, NUM_BLOCKS, REQUESTS, assert_same, config, run

from albireo.messages import SamplingParams

HAS_GPU = torch.cuda.is_available()
slow_without_gpu = pytest.mark.slow if not HAS_GPU else pytest.mark.gpu
if HAS_GPU:
    torch.backends.cuda.matmul.allow_tf32 = False

SMALL = {"num_hidden_layers": 1}


def few(path: Path, chosen: list[dict[str, Any]], max_tokens: int = 6, **settings: Any) -> Pipeline:
    """A short run of some requests."""
    names = ("size", "sampling_mode", "device", "enforce_eager", "mask_lateness")
    options = {name: settings.pop(name) for name in names if name in settings}
    constrained = settings.pop("constrained", ())
    num_blocks = settings.pop("num_blocks", NUM_BLOCKS)
    scheduler = config(**({"max_num_seqs": 4, "max_num_batched_tokens": 48, "max_model_len": 64} | settings))
    pipeline = Pipeline(path, scheduler, num_blocks, eos=EOS, **options)
    for seed, parameters in enumerate(chosen, 1):
        prompt = [(seed * i * i + 11 * i) % 512 for i in range(1, 4 + 9 * seed)]
        sampling = SamplingParams(max_tokens=max_tokens, seed=seed, **parameters)
        pipeline.submit(prompt, sampling, has_grammar=seed in constrained)
    pipeline.run()
    return pipeline


@slow_without_gpu
def test_prompts_in_chunks_decodes_and_logprobs_are_the_cpu_s(make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint("qwen3", **SMALL)
    chosen = [REQUESTS[0], REQUESTS[4], REQUESTS[9]]
    assert_same(few(path, chosen, device="cuda"), few(path, chosen))


def of_all_kinds(path: Path, **settings: Any) -> Pipeline:
    """A run that uses the whole sampling surface; in the interpreter a part of it, whose steps take seconds."""
    if HAS_GPU:
        return run(path, max_tokens=12, **settings)
    return few(path, REQUESTS[2::3], max_tokens=4, **({"max_model_len": 80} | settings))


@slow_without_gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_sampling_surface_of_each_family(make_checkpoint: Callable[..., Path], family: str) -> None:
    path = make_checkpoint(family, **({} if HAS_GPU else SMALL))
    assert_same(of_all_kinds(path, device="cuda"), of_all_kinds(path))


@slow_without_gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "settings",
    [
        {"run_ahead": 0},
        {"run_ahead": 4, "max_num_batched_tokens": 24},
    ],
    ids=str,
)
def test_run_ahead_and_chunks_change_nothing(make_checkpoint: Callable[..., Path], settings: dict[str, Any]) -> None:
    path = make_checkpoint("qwen3", **SMALL)
    assert_same(of_all_kinds(path, device="cuda", **settings), of_all_kinds(path))


@slow_without_gpu
@pytest.mark.timeout(600)
def test_a_preempted_request_goes_on_where_it_was(make_checkpoint: Callable[..., Path]) -> None:
    """With penalties and a nucleus; four blocks hold both prompts and not both answers."""
    path = make_checkpoint("qwen3", **SMALL)
    chosen = [REQUESTS[13] | {"ignore_eos": True}, REQUESTS[4] | {"ignore_eos": True}]
    pipeline = few(path, chosen, max_tokens=14, num_blocks=4, device="cuda")
    assert pipeline.scheduler.counters.num_preemptions > 0
    assert_same(pipeline, few(path, chosen, max_tokens=14))


@slow_without_gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("enforce_eager", [False, True])
def test_a_request_whose_blocks_were_in_host_memory_goes_on_where_it_was(
    make_checkpoint: Callable[..., Path], enforce_eager: bool
) -> None:
    path = make_checkpoint("qwen3", **SMALL)
    chosen = [REQUESTS[13] | {"ignore_eos": True}, REQUESTS[4] | {"ignore_eos": True}]
    settings: dict[str, Any] = {"num_blocks": 4, "num_swap_blocks": 4, "enforce_eager": enforce_eager}
    pipeline = few(path, chosen, max_tokens=14, device="cuda", enable_prefix_caching=False, **settings)
    assert pipeline.scheduler.swap.num_swapped_in > 0
    assert_same(pipeline, few(path, chosen, max_tokens=14))


@pytest.mark.skipif(HAS_GPU, reason="the ranks are threads of one process, and a GPU's stream is one thread's")
@slow_without_gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["gathered", "sequence-parallel"])
def test_two_ranks_give_the_tokens_of_one(make_checkpoint: Callable[..., Path], mode: str) -> None:
    path = make_checkpoint("qwen3", **SMALL)
    chosen = REQUESTS[:4]
    two = few(path, chosen, device="cuda", size=2, sampling_mode=mode, max_model_len=96)
    assert_same(two, few(path, chosen, max_model_len=96))


@slow_without_gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("run_ahead", [0, 2])
def test_requests_under_grammars_whose_masks_are_late(make_checkpoint: Callable[..., Path], run_ahead: int) -> None:
    """Beside others, with logprobs, penalties and filters; the CPU has every mask in time, or waits as well."""
    path = make_checkpoint("qwen3", **SMALL)
    chosen, constrained = [REQUESTS[0], REQUESTS[2], REQUESTS[5], REQUESTS[3]], {1, 2, 3}
    cpu = few(path, chosen, constrained=constrained, run_ahead=0)
    assert cpu.num_waits == 0
    for device in ("cpu", "cuda"):
        late = few(path, chosen, constrained=constrained, device=device, run_ahead=run_ahead, mask_lateness=2)
        assert late.num_waits > 0
        assert_same(late, cpu)
