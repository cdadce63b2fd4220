"""Requests as the device hears of them, and requests of every kind: what tests of the sampling surface share."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from albireo import limits
from albireo.gpu_worker.sampling.adjust_oracle import Adjustments
from albireo.gpu_worker.sampling.table import SamplingTable
from albireo.shm.layout import ADMISSION

VOCAB = 300
MAX_MODEL_LEN = 64


def has_penalties(request: Adjustments) -> bool:
    return (request.repetition_penalty, request.presence_penalty, request.frequency_penalty) != (1.0, 0.0, 0.0)


def recount(request: Adjustments) -> dict[int, int]:
    """`SamplingTable.seen_counts` by token, from the sequence itself."""
    output = list(request.output)
    return {i: 2 * output.count(i) + (i in request.prompt) for i in sorted({*request.prompt, *output})}


def plan_of(requests: dict[int, Adjustments]) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """ADMISSION records of requests by slot, and their extras."""
    entries = np.zeros(len(requests), ADMISSION)
    entries["num_logprobs"] = -1
    extras: list[NDArray[np.int32]] = [np.full(3, -77, np.int32)]
    for entry, (slot, request) in zip(entries, requests.items(), strict=True):
        entry["slot"], entry["extras_start"] = slot, sum(part.size for part in extras)
        entry["num_stop_ids"] = len(request.stop_ids)
        entry["stop_ids"][: len(request.stop_ids)] = request.stop_ids
        entry["min_position"] = len(request.prompt) + request.min_tokens
        entry["repetition_penalty"] = request.repetition_penalty
        entry["presence_penalty"], entry["frequency_penalty"] = request.presence_penalty, request.frequency_penalty
        words = [i for word in request.bad_words for i in (len(word), *word)]
        recent = list(request.output)[-(limits.MAX_BAD_WORD_TOKENS - 1) :] if words else []
        seen = recount(request) if has_penalties(request) else {}
        entry["num_bias"], entry["bad_words_size"] = len(request.logit_bias), len(words)
        entry["num_seen"], entry["num_recent"] = len(seen), len(recent)
        biases = np.array(list(request.logit_bias.values()), np.float32).view(np.int32)
        for part in (list(request.logit_bias), biases, words, list(seen), list(seen.values()), recent):
            extras.append(np.array(part, np.int32))
    return entries, np.concatenate(extras)


def admit(table: SamplingTable, requests: dict[int, Adjustments]) -> None:
    table.admit(*plan_of(requests))


def position_of(request: Adjustments) -> int:
    """Of its next token."""
    return len(request.prompt) + len(request.output)


tokens = st.integers(0, VOCAB - 1)
few_tokens = st.integers(0, 5)
"""So few that sequences repeat them and bad words come true."""
word_tokens = st.one_of(few_tokens, few_tokens, tokens, st.sampled_from([VOCAB, 2**31 - 1]))
float32s = st.floats(-100, 100, width=32)

requests = st.builds(
    Adjustments,
    prompt=st.lists(st.one_of(few_tokens, tokens), max_size=12),
    output=st.lists(st.one_of(few_tokens, tokens), max_size=20),
    bad_words=st.one_of(st.just([]), st.lists(st.lists(word_tokens, min_size=1, max_size=4), max_size=20)),
    stop_ids=st.lists(word_tokens, max_size=limits.MAX_STOP_TOKEN_IDS),
    min_tokens=st.sampled_from([0, 0, 5, 30]),
    logit_bias=st.one_of(st.just({}), st.dictionaries(word_tokens, float32s, max_size=10)),
    repetition_penalty=st.one_of(st.just(1.0), st.sampled_from([0.5, 1.3, 1e3])),
    frequency_penalty=st.one_of(st.just(0.0), st.floats(-2, 2, width=32)),
    presence_penalty=st.one_of(st.just(0.0), st.floats(-2, 2, width=32)),
)
