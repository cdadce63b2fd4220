"""Step A and the log-probabilities of `params`, written for reading: one row at a time. The tests' measure, never
served."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from albireo.gpu_worker.sampling.oracle import mass

Float32s = NDArray[np.float32]


@dataclass
class Adjustments:
    """What a request asks for, and its sequence."""

    prompt: Sequence[int] = ()
    output: Sequence[int] = ()
    bad_words: Sequence[Sequence[int]] = ()
    stop_ids: Sequence[int] = ()
    """EOS ids and its own"""
    min_tokens: int = 0
    logit_bias: dict[int, float] = field(default_factory=dict)
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    allowed: Collection[int] | None = None
    """What its grammar lets come next"""


def adjust_row(logits: Float32s, request: Adjustments) -> Float32s:
    """Step A on a row [vocab]."""
    v, vocab = logits.copy(), len(logits)
    repetition, frequency, presence = (
        np.float32(x) for x in (request.repetition_penalty, request.frequency_penalty, request.presence_penalty)
    )
    output = list(request.output)
    with np.errstate(over="ignore", invalid="ignore"):
        if request.allowed is not None:
            v[[i for i in range(vocab) if i not in request.allowed]] = -np.inf
        for *beginning, last in request.bad_words:
            if last < vocab and output[len(output) - len(beginning) :] == beginning:
                v[last] = -np.inf
        if len(output) < request.min_tokens:
            v[[i for i in request.stop_ids if i < vocab]] = -np.inf
        for i, bias in request.logit_bias.items():
            if i < vocab:
                v[i] += np.float32(bias)
        for i in {*request.prompt, *output}:
            if i < vocab:
                v[i] = v[i] / repetition if v[i] > 0 else v[i] * repetition
        for i in set(output):
            if i < vocab:
                v[i] -= frequency * np.float32(output.count(i))
                v[i] -= presence
    return v


def logprobs(logits: Float32s) -> Float32s:
    """Of every token of a row [vocab]: float32 [vocab]."""
    v = np.where(np.isnan(logits), -np.inf, logits).astype(np.float64)
    top = v.max()
    if top == -np.inf:
        return v.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        gaps = np.where(v == top, 0.0, v - top)
        log_mass = math.log(float(mass(gaps).sum()) / 2.0**44)
        return (gaps - log_mass).astype(np.float32)


def rank(logits: Float32s, token: int) -> int:
    """1 for the most likely token; equals have equal ranks."""
    v = np.where(np.isnan(logits), -np.inf, logits)
    return 1 + int(np.sum(v > v[token]))


def most_likely(logits: Float32s, count: int) -> list[int]:
    """The first `count` tokens by falling logit and rising id."""
    v = np.where(np.isnan(logits), -np.inf, logits)
    tokens: list[int] = np.argsort(-v, kind="stable")[:count].tolist()
    return tokens
