"""The engine against transformers: the same greedy tokens and top logprobs, however requests are run."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Family, write_checkpoint
from pipeline import Pipeline, Result
from transformers import AutoModelForCausalLM

from albireo.config import SchedulerConfig
from albireo.messages import SamplingParams

FAMILIES = ["llama-llama3", "llama-yarn", "mistral", "qwen2", "qwen3"]
PROMPT_LENGTHS = [1, 15, 16, 17, 500]
NUM_OUTPUT = 20
VOCAB_SIZE = 512


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(VOCAB_SIZE, (500,), generator=generator).tolist()
    return [shared[: length - 1] + [length % VOCAB_SIZE] for length in PROMPT_LENGTHS]


def config(**overrides: Any) -> SchedulerConfig:
    return SchedulerConfig(**{"max_num_seqs": 8, "max_num_batched_tokens": 1024, "max_model_len": 640} | overrides)


def run(path: Path, scheduler: SchedulerConfig, num_blocks: int = 200, one_by_one: bool = False) -> Pipeline:
    pipeline = Pipeline(path, scheduler, num_blocks)
    for seed, prompt in enumerate(prompts()):
        pipeline.submit(prompt, SamplingParams(max_tokens=NUM_OUTPUT, temperature=0.0, seed=seed, ignore_eos=True))
        if one_by_one:
            pipeline.run()
    pipeline.run()
    return pipeline


def alone(path: Path) -> Pipeline:
    return run(path, config(enable_prefix_caching=False), one_by_one=True)


def batched(path: Path) -> Pipeline:
    return run(path, config(enable_prefix_caching=False))


def chunked(path: Path) -> Pipeline:
    return run(path, config(max_num_batched_tokens=64, enable_prefix_caching=False))


def with_prefix_hits(path: Path) -> Pipeline:
    pipeline = run(path, config(max_num_batched_tokens=64))
    first = {seed: result.tokens for seed, result in pipeline.results.items()}
    for seed, prompt in enumerate(prompts()):
        pipeline.submit(prompt, SamplingParams(max_tokens=NUM_OUTPUT, temperature=0.0, seed=seed, ignore_eos=True))
    pipeline.run()
    assert pipeline.scheduler.counters.prefix_cache_hits > 500
    assert {seed: result.tokens for seed, result in pipeline.results.items()} == first
    return pipeline


def preempted(path: Path) -> Pipeline:
    # the prompts take 37 blocks and their outputs 7 more
    pipeline = run(path, config(enable_prefix_caching=False, max_num_batched_tokens=600), num_blocks=39)
    assert pipeline.scheduler.counters.num_preemptions > 0
    return pipeline


@cache
def checkpoint(root: Path, family: Family) -> tuple[Path, Any]:
    path = write_checkpoint(root / family, family)
    return path, AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@torch.inference_mode()
def check(model: Any, result: Result) -> None:
    """Every token is the reference's greedy choice, and its five largest logprobs are the same."""
    assert len(result.tokens) == NUM_OUTPUT
    sequence = torch.tensor([result.prompt + result.tokens[:-1]])
    expected = model(sequence).logits[0, len(result.prompt) - 1 :].float().log_softmax(-1)
    assert expected.argmax(-1).tolist() == result.tokens
    ours = torch.stack([result.logits[len(result.prompt) + i] for i in range(NUM_OUTPUT)]).log_softmax(-1)
    values, ids = expected.topk(5)
    torch.testing.assert_close(ours.gather(1, ids), values, atol=2e-4, rtol=0)


@pytest.mark.parametrize("scenario", [alone, batched, chunked, with_prefix_hits, preempted])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_top_logprobs_are_those_of_transformers(
    root: Path, family: Family, scenario: Callable[[Path], Pipeline]
) -> None:
    path, model = checkpoint(root, family)
    for result in scenario(path).results.values():
        check(model, result)
