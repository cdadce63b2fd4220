"""A request's sampling fields -> `SamplingParams`, with the model's and the engine's bounds applied."""

import os
from collections.abc import Sequence
from typing import TypeVar

from msgspec import Struct

from albireo import limits
from albireo.checkpoint import GenerationDefaults
from albireo.errors import RequestError
from albireo.frontend.requests import ChatRequest, CompletionRequest, GenerationRequest
from albireo.messages import SamplingParams

T = TypeVar("T", int, float)

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default `max_tokens` of /v1/completions."""


class ModelBounds(Struct, frozen=True):
    """What the served model and its engine set for every request."""

    context_tokens: int
    """Most tokens in one sequence: the model's length, or the KV cache's capacity where that is less."""
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    defaults: GenerationDefaults
    max_logprobs: int = limits.MAX_LOGPROBS
    """Largest `logprobs`, `top_logprobs` and `prompt_logprobs` (--max-logprobs)."""


def check_prompt_length(num_tokens: int, bounds: ModelBounds, field: str) -> None:
    """Raises RequestError unless the context holds the prompt and at least one token more."""
    if num_tokens == 0:
        raise RequestError(f"{field} must not be empty", field=field)
    if num_tokens >= bounds.context_tokens:
        raise RequestError(
            f"{field} has {num_tokens} tokens, and the context of {bounds.context_tokens} tokens must hold at least "
            "one more",
            field=field,
            code="context_length_exceeded",
        )


def sampling_params(
    request: GenerationRequest,
    num_prompt_tokens: int,
    default_max_tokens: int | None,
    bounds: ModelBounds,
    bad_words: tuple[tuple[int, ...], ...] = (),
    biases: tuple[tuple[int, float], ...] = (),
) -> SamplingParams:
    """Fills what the request leaves open from the checkpoint's generation config, then OpenAI's defaults.

    `default_max_tokens` None is the rest of the context. `bad_words` and `biases`: the request's, as token ids. Raises
    RequestError for what only the model can tell to be out of bounds, and for fields that do not go together.
    """
    defaults = bounds.defaults
    temperature = _first(request.temperature, defaults.temperature, 1.0)
    max_tokens = _max_tokens(request, num_prompt_tokens, default_max_tokens, bounds)
    logprobs, prompt_logprobs = num_logprobs(request, bounds)
    return SamplingParams(
        # one is computed with the prompt, whether or not it is wanted (`generation.PromptOnly`)
        max_tokens=max(max_tokens, 1),
        temperature=temperature if temperature >= limits.MIN_SAMPLED_TEMPERATURE else 0.0,
        top_p=_first(request.top_p, defaults.top_p, 1.0),
        top_k=max(_first(request.top_k, defaults.top_k, 0), 0),
        min_p=_first(request.min_p, defaults.min_p, 0.0),
        seed=_seed(request.seed),
        stop_token_ids=_stop_token_ids(request, bounds),
        ignore_eos=bool(request.ignore_eos),
        min_tokens=_min_tokens(request, max_tokens),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=_first(request.repetition_penalty, defaults.repetition_penalty, 1.0),
        logit_bias=biases,
        bad_words=bad_words,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def num_logprobs(request: GenerationRequest, bounds: ModelBounds) -> tuple[int, int]:
    """How many likely tokens stand beside each output token and each prompt token; -1 where none is scored."""
    scored, wanted = -1, {"prompt_logprobs": request.prompt_logprobs}
    if isinstance(request, ChatRequest):
        wanted["top_logprobs"] = request.top_logprobs
        if request.logprobs:
            scored = request.top_logprobs or 0
        elif request.top_logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", field="top_logprobs")
    elif isinstance(request, CompletionRequest) and request.logprobs is not None:
        scored = wanted["logprobs"] = request.logprobs
    for field, asked in wanted.items():
        if asked is not None and asked > bounds.max_logprobs:
            raise RequestError(f"{field} must be at most {bounds.max_logprobs}", field=field)
    if request.stream and request.prompt_logprobs is not None:
        raise RequestError("prompt_logprobs is not for streams: set stream to false", field="prompt_logprobs")
    prompt = -1 if request.prompt_logprobs is None else request.prompt_logprobs
    return scored, max(prompt, scored) if isinstance(request, CompletionRequest) and request.echo else prompt


def check_num_scores(
    sampling: Sequence[SamplingParams], num_prompt_tokens: Sequence[int], num_samples: int, streams: bool
) -> None:
    """Raises RequestError when the prompts' log-probabilities, repeated for each sample, are too many for one
    response."""
    total = sum(n * (params.prompt_logprobs + 1) for params, n in zip(sampling, num_prompt_tokens, strict=True))
    total *= num_samples
    most = limits.MAX_STREAMED_PROMPT_SCORES if streams else limits.MAX_PROMPT_SCORES
    if total > most:
        kind, advice = ("stream", "or do not stream") if streams else ("response", "with fewer likely tokens each")
        raise RequestError(
            f"the prompt's log-probabilities are {total}, and a {kind} holds at most {most}: send fewer prompts at "
            f"once, {advice}",
            field="prompt",
        )


def check_constrained(request: GenerationRequest, grammar_field: str) -> None:
    """Raises RequestError for fields with which a grammar could leave no token to choose."""
    for field in ("ignore_eos", "min_tokens", "bad_words"):
        if getattr(request, field):
            raise RequestError(f"{field} does not go together with {grammar_field}", field=field)


def _min_tokens(request: GenerationRequest, max_tokens: int) -> int:
    asked = request.min_tokens or 0
    if asked > max_tokens:
        raise RequestError(f"min_tokens must be at most {max_tokens}, which is max_tokens", field="min_tokens")
    return asked


def _first(given: T | None, default: T | None, fallback: T) -> T:
    if given is not None:
        return given
    return fallback if default is None else default


def _seed(seed: int | None) -> int:
    """The client's 64 bits, or fresh ones: two requests without a seed must not repeat each other."""
    return int.from_bytes(os.urandom(8), "little") if seed is None else seed % 2**64


def _max_tokens(request: GenerationRequest, num_prompt_tokens: int, default: int | None, bounds: ModelBounds) -> int:
    room = bounds.context_tokens - num_prompt_tokens
    field, asked = "max_tokens", request.max_tokens
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        if asked is not None and asked != request.max_completion_tokens:
            raise RequestError("max_tokens and max_completion_tokens must not differ", field="max_completion_tokens")
        field, asked = "max_completion_tokens", request.max_completion_tokens
    if asked is None:
        return room if default is None else min(default, room)
    if not asked and not (isinstance(request, CompletionRequest) and request.echo):
        raise RequestError(f"{field} must be at least 1, or 0 with echo, which then is all", field=field)
    if asked > room:
        raise RequestError(
            f"{field} must be at most {room}: the context holds {bounds.context_tokens} tokens and the prompt has "
            f"{num_prompt_tokens}",
            field=field,
            code="context_length_exceeded",
        )
    return asked


def _stop_token_ids(request: GenerationRequest, bounds: ModelBounds) -> tuple[int, ...]:
    stop_ids = tuple(dict.fromkeys(request.stop_token_ids or ()))
    most = limits.MAX_STOP_TOKEN_IDS - (0 if request.ignore_eos else len(bounds.eos_token_ids))
    if len(stop_ids) > most:
        raise RequestError(f"stop_token_ids must have at most {most} entries", field="stop_token_ids")
    for index, token in enumerate(stop_ids):
        if token >= bounds.vocab_size:
            raise RequestError(
                f"stop_token_ids[{index}] must be below the vocabulary size {bounds.vocab_size}",
                field=f"stop_token_ids[{index}]",
            )
    return stop_ids


def stop_strings(request: GenerationRequest) -> tuple[str, ...]:
    """The request's stop strings, without repeats."""
    stop = request.stop
    return (stop,) if isinstance(stop, str) else tuple(dict.fromkeys(stop or ()))
