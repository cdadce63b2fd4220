"""From a request's fields to what the engine is told."""

from typing import Any

import pytest

from albireo import limits
from albireo.checkpoint import GenerationDefaults
from albireo.errors import RequestError
from albireo.frontend.logit_bias import logit_bias
from albireo.frontend.requests import ChatRequest, CompletionRequest
from albireo.frontend.sampling import ModelBounds, check_num_scores, num_logprobs, sampling_params, stop_strings
from albireo.limits import MAX_PROMPT_SCORES, MAX_STREAMED_PROMPT_SCORES
from albireo.messages import SamplingParams

NOTHING = GenerationDefaults()
QWEN = GenerationDefaults(temperature=0.6, top_p=0.95, top_k=20, min_p=0.1)


def params(
    defaults: GenerationDefaults = NOTHING, prompt: int = 10, default_max_tokens: int | None = 16, **fields: Any
) -> SamplingParams:
    bounds = ModelBounds(100, 1000, (1, 2), defaults)
    request = CompletionRequest(**fields)
    biases = logit_bias(request.logit_bias or {}, bounds.vocab_size)
    return sampling_params(request, prompt, default_max_tokens, bounds, (), biases)


def test_without_anything_openai_s_defaults_hold() -> None:
    got = params(seed=1)
    assert got == SamplingParams(max_tokens=16, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=1)


def test_the_checkpoint_s_defaults_go_before_openai_s_and_the_request_before_both() -> None:
    got = params(QWEN)
    assert (got.temperature, got.top_p, got.top_k, got.min_p) == (0.6, 0.95, 20, 0.1)
    got = params(QWEN, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)
    assert (got.temperature, got.top_p, got.top_k, got.min_p) == (0.0, 1.0, 0, 0.0)


def test_top_k_minus_one_is_all_tokens() -> None:
    assert params(top_k=-1).top_k == 0


def test_a_temperature_too_small_to_divide_by_is_greedy() -> None:
    assert params(temperature=limits.MIN_SAMPLED_TEMPERATURE / 2).temperature == 0.0
    assert params(temperature=0.001).temperature == 0.001


def test_max_tokens_is_the_rest_of_the_context_at_most() -> None:
    assert params(prompt=95).max_tokens == 5
    assert params(default_max_tokens=None).max_tokens == 90
    assert params(max_tokens=90).max_tokens == 90
    with pytest.raises(RequestError, match="max_tokens must be at most 90"):
        params(max_tokens=91)


def test_a_seed_s_64_bits_are_kept_and_a_missing_one_is_drawn() -> None:
    assert params(seed=-1).seed == 2**64 - 1
    assert params(seed=0).seed == 0
    assert len({params().seed for _ in range(10)}) == 10


def test_stop_ids_and_the_model_s_own_share_one_table() -> None:
    most = limits.MAX_STOP_TOKEN_IDS - 2
    assert params(stop_token_ids=list(range(most))).stop_token_ids == tuple(range(most))
    with pytest.raises(RequestError, match=f"at most {most}"):
        params(stop_token_ids=list(range(most + 1)))
    assert len(params(stop_token_ids=list(range(most + 2)), ignore_eos=True).stop_token_ids) == most + 2
    assert params(stop_token_ids=[7, 7, 8]).stop_token_ids == (7, 8)


def test_penalties_and_min_tokens_go_to_the_engine_as_they_are() -> None:
    got = params(presence_penalty=-2.0, frequency_penalty=0.5, repetition_penalty=1.1, min_tokens=16)
    assert (got.presence_penalty, got.frequency_penalty, got.repetition_penalty) == (-2.0, 0.5, 1.1)
    assert got.min_tokens == 16
    with pytest.raises(RequestError, match="min_tokens must be at most 16"):
        params(min_tokens=17)


def test_logit_bias_is_by_token_id() -> None:
    assert params(logit_bias={"5": -100.0, "0": 1.0, "999": 100.0}).logit_bias == ((5, -100.0), (0, 1.0), (999, 100.0))
    assert params(logit_bias={}).logit_bias == ()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (-1, -1)),
        ({"logprobs": 0}, (0, -1)),
        ({"logprobs": 5}, (5, -1)),
        ({"logprobs": 5, "echo": True}, (5, 5)),
        ({"echo": True}, (-1, -1)),
        ({"prompt_logprobs": 0}, (-1, 0)),
        ({"prompt_logprobs": 7, "logprobs": 2, "echo": True}, (2, 7)),
        ({"prompt_logprobs": 1, "logprobs": 2, "echo": True}, (2, 2)),
    ],
    ids=str,
)
def test_how_many_logprobs_a_completion_asks_for(fields: dict[str, Any], expected: tuple[int, int]) -> None:
    got = params(**fields)
    assert (got.logprobs, got.prompt_logprobs) == expected


def test_how_many_logprobs_a_chat_asks_for() -> None:
    bounds = ModelBounds(100, 1000, (1, 2), NOTHING)

    def asked(**fields: Any) -> tuple[int, int]:
        return num_logprobs(ChatRequest(messages=[], **fields), bounds)

    assert asked() == asked(logprobs=False) == asked(top_logprobs=0) == (-1, -1)
    assert asked(logprobs=True) == (0, -1)
    assert asked(logprobs=True, top_logprobs=3, prompt_logprobs=2) == (3, 2)


def test_stop_strings_are_one_or_several() -> None:
    assert stop_strings(CompletionRequest()) == ()
    assert stop_strings(CompletionRequest(stop="a")) == ("a",)
    assert stop_strings(CompletionRequest(stop=["a", "b", "a"])) == ("a", "b")


def test_a_chat_s_max_completion_tokens_is_its_max_tokens() -> None:
    bounds = ModelBounds(100, 1000, (1, 2), NOTHING)
    request = ChatRequest(messages=[], max_completion_tokens=7)
    assert sampling_params(request, 10, None, bounds).max_tokens == 7
    request.max_tokens = 8
    with pytest.raises(RequestError, match="differ"):
        sampling_params(request, 10, None, bounds)


@pytest.mark.parametrize(("streams", "most"), [(False, MAX_PROMPT_SCORES), (True, MAX_STREAMED_PROMPT_SCORES)])
def test_prompt_logprobs_are_bounded_over_all_prompts_of_a_request(streams: bool, most: int) -> None:
    scored = params(prompt_logprobs=3)
    check_num_scores([scored, scored], [most // 8, most // 8], 1, streams)
    check_num_scores([params()], [10 * most], 1, streams)
    with pytest.raises(RequestError, match=f"are {most + 4}, and a {'stream' if streams else 'response'} holds"):
        check_num_scores([scored, scored], [most // 8, most // 8 + 1], 1, streams)
