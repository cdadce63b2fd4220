"""Sixteen requests that use the whole sampling surface, run by one engine or another, and what must not differ."""

from pathlib import Path
from typing import Any

import numpy as np
from pipeline import Pipeline, Result

from albireo.config import SchedulerConfig
from albireo.messages import Finish, SamplingParams

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


def config(**overrides: Any) -> SchedulerConfig:
    settings = {"max_num_seqs": 16, "max_num_batched_tokens": 256, "max_model_len": 256}
    return SchedulerConfig(**(settings | overrides))


def run(path: Path, vocab: int = 512, num_blocks: int = NUM_BLOCKS, max_tokens: int = 20, **settings: Any) -> Pipeline:
    names = ("size", "sampling_mode", "device", "enforce_eager", "dtype")
    options = {name: settings.pop(name) for name in names if name in settings}
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
