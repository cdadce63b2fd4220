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
from pipeline import Pipeline, Result

from albireo.config import SamplingMode, SchedulerConfig
from albireo.messages import Finish, SamplingParams

MODES: tuple[SamplingMode, ...] = get_args(SamplingMode)
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
EOS = (100, 101, 102)
LOGPROB_TOLERANCE = 2e-4
NUM_BLOCKS = 400

REQUESTS: list[dict[str, Any]] = [
    {"temperature": 0.0, "logprobs": 5},
    {"temperature": 0.0, "repetition_penalty": 1.3, "ignore_eos": True},
    {"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": 0.5, "logprobs": 0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 1.3, "top_p": 0.5, "logprobs": 20},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 1.0, "top_k": 200},
    {"temperature": 0.9, "top_k": 300, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.5, "min_p": 0.05, "prompt_logprobs": 3},
    {"temperature": 1.0, "top_k": 60, "top_p": 0.8, "min_p": 0.01},
    {"temperature": 1.0, "logit_bias": ((7, 5.0), (300, 4.0), (8, -100.0)), "min_tokens": 10},
    {"temperature": 0.7, "bad_words": ((5,), (17, 18), (200, 201, 202)), "top_p": 0.9},
    {"temperature": 1.2, "frequency_penalty": -1.0, "repetition_penalty": 0.8, "top_k": 20, "logprobs": 1},
    {"temperature": 2.0, "stop_token_ids": tuple(range(50, 60)), "min_tokens": 4},
    {"temperature": 0.0, "prompt_logprobs": 0, "logprobs": 0},
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(**overrides: Any) -> SchedulerConfig:
    settings = {"max_num_seqs": 16, "max_num_batched_tokens": 256, "max_model_len": 256}
    return SchedulerConfig(**(settings | overrides))


def run(path: Path, vocab: int = 512, num_blocks: int = NUM_BLOCKS, max_tokens: int = 20, **settings: Any) -> Pipeline:
    options = {name: settings.pop(name) for name in ("size", "sampling_mode") if name in settings}
    pipeline = Pipeline(path, config(**settings), num_blocks, eos=EOS, **options)
    for seed, parameters in enumerate(REQUESTS, 1):
        prompt = [(seed * i * i + 11 * i) % vocab for i in range(1, 4 + 5 * seed)]
        pipeline.submit(prompt, SamplingParams(max_tokens=max_tokens, seed=seed, **parameters))
    pipeline.run()
    return pipeline


def tokens(pipeline: Pipeline) -> list[tuple[list[int], Finish]]:
    return [(result.tokens, result.finish) for result in pipeline.results.values()]


def assert_same_logprobs(ours: Result, theirs: Result) -> None:
    assert ours.logprobs.keys() == theirs.logprobs.keys()
    for position, record in ours.logprobs.items():
        other = theirs.logprobs[position]
        for name in ("token", "num_top"):
            assert record[name] == other[name]
        # among 100,000 smaller logits some lie within a rounding error
        assert abs(int(record["rank"]) - int(other["rank"])) <= int(other["rank"]) * 1e-4
        np.testing.assert_allclose(record["logprob"], other["logprob"], atol=LOGPROB_TOLERANCE)
        np.testing.assert_allclose(record["top_logprobs"], other["top_logprobs"], atol=LOGPROB_TOLERANCE)
        assert np.array_equal(record["top_ids"], other["top_ids"])


def assert_same(ours: Pipeline, theirs: Pipeline) -> None:
    assert tokens(ours) == tokens(theirs)
    for seed, result in ours.results.items():
        assert_same_logprobs(result, theirs.results[seed])


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
