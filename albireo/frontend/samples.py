"""`n`: several samples of each prompt, which share its KV blocks and what is said of its tokens."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from albireo import limits
from albireo.errors import RequestError
from albireo.frontend.token_scores import TokenScores
from albireo.messages import SamplingParams


class Sample(Struct):
    """One sequence of a request."""

    prompt_index: int
    sampling: SamplingParams
    scores: TokenScores | None
    """Room for the log-probabilities that the request asks for."""
    leads: bool
    """It is the first of its prompt."""


def check_num_sequences(num_prompts: int, num_samples: int) -> None:
    """Raises RequestError before anything is made for so many."""
    if num_prompts * num_samples > limits.MAX_SEQUENCES:
        raise RequestError(
            f"n must be at most {limits.MAX_SEQUENCES // num_prompts} with {num_prompts} prompts: a request has at "
            f"most {limits.MAX_SEQUENCES} sequences",
            field="n",
        )


def samples_of(params: Sequence[SamplingParams], num_prompt_tokens: Sequence[int], num_samples: int) -> list[Sample]:
    """The samples of every prompt, in the order of the response's choices. Sample i has the seed plus i: other tokens
    than its neighbours, and the same as when it is asked for by itself."""
    return [
        sample
        for index, (sampling, num_tokens) in enumerate(zip(params, num_prompt_tokens, strict=True))
        for sample in _samples_of_one(index, sampling, num_tokens, num_samples)
    ]


def _samples_of_one(index: int, sampling: SamplingParams, num_tokens: int, num_samples: int) -> list[Sample]:
    """Only the first has the prompt scored: a score needs the token computed, and the others take its blocks."""
    first = Sample(index, sampling, _scores(sampling, num_tokens), leads=True)
    others = []
    for i in range(1, num_samples):
        changed = msgspec.structs.replace(sampling, seed=(sampling.seed + i) % 2**64, prompt_logprobs=-1)
        scores = None
        if first.scores is not None:
            scores = TokenScores(num_tokens, scores_prompt=False)
            scores.prompt = first.scores.prompt
        others.append(Sample(index, changed, scores, leads=False))
    return [first, *others]


def _scores(sampling: SamplingParams, num_prompt_tokens: int) -> TokenScores | None:
    if sampling.logprobs < 0 and sampling.prompt_logprobs < 0:
        return None
    return TokenScores(num_prompt_tokens, sampling.prompt_logprobs >= 0)
