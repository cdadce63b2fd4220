"""The decoder against transformers: the same logits and the same greedy tokens, however the tokens are stepped."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from paged_runner import MAX_LEN, PagedRunner
from torch import Tensor
from transformers import AutoModelForCausalLM

from albireo.checkpoint import read_checkpoint
from albireo.checkpoint.shard import shard_model
from albireo.gpu_worker.attention.oracle import OracleAttention
from albireo.gpu_worker.collectives.interface import Alone
from albireo.gpu_worker.cpu_backend import CpuBackend
from albireo.gpu_worker.layer_ops import KernelLayerOps
from albireo.gpu_worker.models.decoder import DecoderModel
from albireo.gpu_worker.weights import MappedWeights

FAMILIES = ["llama", "llama-llama3", "llama-linear", "llama-yarn", "mistral", "qwen2", "qwen2-windows", "qwen3"]
PROMPT_LENGTHS = [1, 15, 16, 17, 500]
TOLERANCE = 2e-4
"""Of logits of unit size; sums run in another order."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These matrices are too small to share, and threads that wait for each other on a busy machine are slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(path: Path, dtype: torch.dtype = torch.float32) -> DecoderModel:
    model = read_checkpoint(path).model
    weights = MappedWeights(path, model, dtype, lambda stage, fraction: None)
    decoder = DecoderModel(
        model, shard_model(model, 0, 1), weights, dtype, OracleAttention(), Alone(), MAX_LEN, CpuBackend()
    )
    weights.release()
    return decoder


def reference(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)


@torch.inference_mode()
def reference_logits(model: Any, tokens: list[int]) -> Tensor:
    logits: Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def prompt_of(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(512, (length,), generator=generator).tolist()


def assert_same_logits(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
    values, ids = theirs.log_softmax(-1).topk(5)
    torch.testing.assert_close(ours.log_softmax(-1).gather(-1, ids), values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_whole_and_in_chunks(
    make_checkpoint: Callable[..., Path], family: str
) -> None:
    path = make_checkpoint(family)
    model, theirs = load(path), reference(path)
    for length in PROMPT_LENGTHS:
        prompt = prompt_of(length)
        expected = reference_logits(theirs, prompt)
        for slot, chunk in enumerate((MAX_LEN, 64, 7)):
            assert_same_logits(PagedRunner(model, seed=slot).prefill(slot, prompt, chunk), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers_alone_and_together(
    make_checkpoint: Callable[..., Path], family: str
) -> None:
    path = make_checkpoint(family)
    model, theirs = load(path), reference(path)
    prompts = {slot: prompt_of(length) for slot, length in enumerate(PROMPT_LENGTHS)}
    together = PagedRunner(model).generate(prompts, 12)
    for slot, prompt in prompts.items():
        assert PagedRunner(model).generate({slot: prompt}, 12)[slot] == together[slot]
        expected = reference_logits(theirs, prompt + together[slot][:-1])[len(prompt) - 1 :]
        assert expected.argmax(-1).tolist() == together[slot]


def test_decodes_and_chunks_of_one_step_do_not_mix(make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint("mistral")
    model, theirs = load(path), reference(path)
    runner = PagedRunner(model)
    prompts = {slot: prompt_of(40 + slot, seed=1) for slot in range(4)}
    parts: dict[int, list[Tensor]] = {slot: [] for slot in prompts}
    plan = [
        {0: prompts[0][:39]},
        {1: prompts[1][:20], 0: prompts[0][39:], 2: prompts[2][:41]},
        {1: prompts[1][20:], 3: prompts[3][:42], 2: prompts[2][41:]},
        {3: prompts[3][42:]},
    ]
    for work in plan:
        for slot, logits in runner.step(work).items():
            parts[slot].append(logits)
    for slot, prompt in prompts.items():
        assert_same_logits(torch.cat(parts[slot]), reference_logits(theirs, prompt))


@pytest.mark.parametrize("family", ["llama-llama3", "qwen2", "qwen3"])
@pytest.mark.parametrize("attention_bias", [False, True])
def test_flags_of_a_family_are_obeyed(make_checkpoint: Callable[..., Path], family: str, attention_bias: bool) -> None:
    overrides: dict[str, Any] = {"tie_word_embeddings": family == "llama-llama3", "num_key_value_heads": 4}
    if family != "qwen2":
        overrides["attention_bias"] = attention_bias
    if family == "llama-llama3":
        overrides["mlp_bias"] = attention_bias
    path = make_checkpoint(family, **overrides)
    prompt = prompt_of(40)
    assert_same_logits(PagedRunner(load(path)).prefill(0, prompt), reference_logits(reference(path), prompt))


def test_sizes_that_fit_no_kernel_are_computed_all_the_same(make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint("qwen3", hidden_size=72, intermediate_size=100, head_dim=20)
    model = load(path)
    assert not KernelLayerOps.fits(model.config)
    assert KernelLayerOps.fits(load(make_checkpoint("qwen3")).config)
    prompt = prompt_of(40)
    assert_same_logits(PagedRunner(model).prefill(0, prompt), reference_logits(reference(path), prompt))


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_half_precision_weights_run_in_fp32_exactly(
    make_checkpoint: Callable[..., Path], stored: Literal["float16", "bfloat16"]
) -> None:
    path = make_checkpoint("qwen3", dtype=stored)
    prompt = prompt_of(40)
    assert_same_logits(PagedRunner(load(path)).prefill(0, prompt), reference_logits(reference(path), prompt))


def test_sharded_weights_give_the_same_logits(make_checkpoint: Callable[..., Path]) -> None:
    prompt = prompt_of(40)
    whole = PagedRunner(load(make_checkpoint("llama"))).prefill(0, prompt)
    sharded = PagedRunner(load(make_checkpoint("llama", max_shard_size="100KB"))).prefill(0, prompt)
    torch.testing.assert_close(sharded, whole, atol=0, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_as_close_to_fp32_as_transformers_bf16_is(make_checkpoint: Callable[..., Path], family: str) -> None:
    path = make_checkpoint(family, dtype="bfloat16")
    model, theirs = load(path, torch.bfloat16), reference(path, torch.bfloat16)
    for length in (1, 17, 500):
        prompt = prompt_of(length)
        exact = reference_logits(reference(path), prompt)
        their_error = (reference_logits(theirs, prompt).float() - exact).square().mean().sqrt()
        for chunk in (MAX_LEN, 3, 1):
            ours = PagedRunner(model).prefill(0, prompt[: 8 * chunk], chunk).float()
            our_error = (ours - exact[: len(ours)]).square().mean().sqrt()
            assert our_error < 1.5 * their_error + 0.02


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="oneDNN's order of sums is known for AVX512-BF16")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decode_row_has_the_same_bits_alone_and_in_any_batch(
    make_checkpoint: Callable[..., Path], dtype: torch.dtype
) -> None:
    model = load(make_checkpoint("qwen3", dtype="bfloat16", tie_word_embeddings=False), dtype)
    prompts = {slot: prompt_of(20 + slot) for slot in range(7)}
    runner = PagedRunner(model, num_slots=7)
    for slot, prompt in prompts.items():
        runner.prefill(slot, prompt)
    together = runner.step({slot: [slot] for slot in prompts})
    for slot, prompt in prompts.items():
        alone = PagedRunner(model, num_slots=1)
        alone.prefill(0, prompt)
        assert torch.equal(alone.step({0: [slot]})[0], together[slot])
