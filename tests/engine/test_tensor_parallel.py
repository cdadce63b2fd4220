"""The number of ranks and the sampling mode change where things are computed, never what comes out.

In one process: the ranks are threads that take turns (`pipeline`), so many engines can be tried in little time; real
processes are in test_tensor_parallel_server.py. fp32, so that the order of a sum over ranks decides no token.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from pipeline import Pipeline
from sampled_requests import NUM_BLOCKS, REQUESTS, assert_same, config, run

from albireo.config import SamplingMode
from albireo.messages import SamplingParams

MODES: tuple[SamplingMode, ...] = get_args(SamplingMode)
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("tensor-parallel")

    @cache
    def write(family: str) -> Path:
        return write_checkpoint(root / family, family)  # type: ignore[arg-type]

    return write


@pytest.fixture(scope="module")
def alone(checkpoint: Callable[[str], Path]) -> Callable[[str], Pipeline]:
    """Each family on one rank."""
    return cache(lambda family: run(checkpoint(family)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_and_modes_give_the_tokens_and_logprobs_of_one_rank(
    checkpoint: Callable[[str], Path], alone: Callable[[str], Pipeline], family: str, size: int, mode: SamplingMode
) -> None:
    assert_same(run(checkpoint(family), size=size, sampling_mode=mode), alone(family))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "settings",
    [
        {"run_ahead": 0},
        {"run_ahead": 4},
        {"max_num_batched_tokens": 24},
        {"num_blocks": 20},
        {"num_blocks": 12, "max_num_batched_tokens": 100, "run_ahead": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [2, 4])
def test_run_ahead_chunks_and_preemptions_change_nothing(
    checkpoint: Callable[[str], Path],
    alone: Callable[[str], Pipeline],
    size: int,
    mode: SamplingMode,
    settings: dict[str, Any],
) -> None:
    pipeline = run(checkpoint("qwen3"), size=size, sampling_mode=mode, **settings)
    if "num_blocks" in settings:
        assert pipeline.scheduler.counters.num_preemptions > 0
    assert_same(pipeline, alone("qwen3"))


@pytest.mark.parametrize("mode", MODES)
def test_a_vocabulary_of_152k_on_three_degrees(tmp_path_factory: pytest.TempPathFactory, mode: SamplingMode) -> None:
    path = large_vocabulary(tmp_path_factory.getbasetemp() / "large-vocabulary")
    whole = large_on_one_rank(path)
    for size in (2, 4):
        assert_same(run(path, 151_936, max_tokens=8, size=size, sampling_mode=mode), whole)


@cache
def large_vocabulary(path: Path) -> Path:
    return write_checkpoint(path, "qwen3", vocab_size=151_936)


@cache
def large_on_one_rank(path: Path) -> Pipeline:
    return run(path, 151_936, max_tokens=8)


def test_logprobs_are_those_of_the_captured_logits(alone: Callable[[str], Pipeline]) -> None:
    """Of the unmodified distribution, whatever the request's parameters."""
    checked = 0
    for result in alone("qwen3").results.values():
        for position, record in result.logprobs.items():
            if position in result.logits:
                expected = result.logits[position].log_softmax(-1)
                assert abs(float(record["logprob"]) - float(expected[int(record["token"])])) < 1e-5
                values, _ = expected.topk(int(record["num_top"]))
                np.testing.assert_allclose(record["top_logprobs"][: record["num_top"]], values, atol=1e-5)
                checked += 1
    assert checked > 50


def test_prompt_logprobs_come_for_every_prompt_token_but_the_first(alone: Callable[[str], Pipeline]) -> None:
    for seed, parameters in enumerate(REQUESTS, 1):
        result = alone("qwen3").results[seed]
        positions = sorted(position for position in result.logprobs if position < len(result.prompt))
        wanted = range(1, len(result.prompt)) if "prompt_logprobs" in parameters else ()
        assert positions == list(wanted)
        assert all(int(result.logprobs[position]["token"]) == result.prompt[position] for position in positions)


def test_scoring_a_long_prompt_gives_signs_of_life(checkpoint: Callable[[str], Path]) -> None:
    """A step that scores many tokens of a large model takes long, and must not look like a hang."""
    beats = []
    for prompt_logprobs in (-1, 0):
        pipeline = Pipeline(checkpoint("qwen3"), config(max_num_batched_tokens=512, max_model_len=512), NUM_BLOCKS)
        start = pipeline.num_beats
        pipeline.submit([7] * 400, SamplingParams(max_tokens=1, seed=1, prompt_logprobs=prompt_logprobs))
        pipeline.run()
        beats.append(pipeline.num_beats - start)
    assert beats[1] >= beats[0] + 3
