"""What a plan says of a request that enters a slot: an ADMISSION record, and its extras."""

from typing import Any

import numpy as np
import numpy.typing as npt

from albireo.coordinator.request import Request
from albireo.limits import MAX_BAD_WORD_TOKENS
from albireo.messages import SamplingParams
from albireo.shm.plan_ring import PlanSlot

Int32s = npt.NDArray[np.int32]


def has_penalties(sampling: SamplingParams) -> bool:
    """Whether the device must know which tokens the sequence has."""
    return bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0)


def extras_bound(request: Request) -> int:
    """Most int32 of the plan's extras that the request's admission takes; 0 for one that asks for nothing special."""
    sampling = request.sampling
    bound = 2 * len(sampling.logit_bias) + sum(len(word) + 1 for word in sampling.bad_words)
    if sampling.bad_words:
        bound += MAX_BAD_WORD_TOKENS - 1
    return bound + 2 * request.tokens.size if has_penalties(sampling) else bound


def write_admission(plan: PlanSlot, request: Request, generation: int, eos_token_ids: tuple[int, ...]) -> None:
    """Appends the request, which has its slot, to the plan's admissions."""
    sampling, header = request.sampling, plan.header
    eos = () if sampling.ignore_eos else eos_token_ids
    stop_ids = eos + sampling.stop_token_ids
    index = int(header["num_admissions"][0])
    entry = plan.admissions[index : index + 1]
    entry["slot"], entry["generation"] = request.slot, generation
    entry["seed"], entry["temperature"] = sampling.seed, sampling.temperature
    entry["top_p"], entry["min_p"], entry["top_k"] = sampling.top_p, sampling.min_p, sampling.top_k
    entry["num_eos_ids"], entry["num_stop_ids"] = len(eos), len(sampling.stop_token_ids)
    entry["stop_ids"][0, : len(stop_ids)] = stop_ids
    entry["repetition_penalty"] = sampling.repetition_penalty
    entry["presence_penalty"], entry["frequency_penalty"] = sampling.presence_penalty, sampling.frequency_penalty
    entry["min_position"] = min(request.num_prompt_tokens + sampling.min_tokens, request.max_total_tokens)
    entry["num_logprobs"], entry["num_prompt_logprobs"] = sampling.logprobs, sampling.prompt_logprobs
    entry["has_grammar"] = request.has_grammar
    _write_extras(plan, entry, request)
    header["num_admissions"] = index + 1


def _write_extras(plan: PlanSlot, entry: npt.NDArray[Any], request: Request) -> None:
    sampling = request.sampling
    start = int(plan.header["num_extras"][0])
    entry["extras_start"] = start
    parts = []
    entry["num_bias"] = len(sampling.logit_bias)
    if sampling.logit_bias:
        ids, values = zip(*sampling.logit_bias, strict=True)
        parts += [np.array(ids, np.int32), np.array(values, np.float32).view(np.int32)]
    words = [entry for word in sampling.bad_words for entry in (len(word), *word)]
    entry["bad_words_size"] = len(words)
    seen = _seen(request) if has_penalties(sampling) else np.empty(0, np.int32)
    entry["num_seen"] = seen.size // 2
    recent = request.tokens[request.num_prompt_tokens :][-(MAX_BAD_WORD_TOKENS - 1) :] if words else seen[:0]
    entry["num_recent"] = recent.size
    parts += [np.array(words, np.int32), seen, recent]
    extras = np.concatenate(parts)
    plan.extras[start : start + extras.size] = extras
    plan.header["num_extras"] = start + extras.size


def _seen(request: Request) -> Int32s:
    """The sequence's distinct tokens, ascending, then 2 * (times in the output) + (1 if in the prompt) for each."""
    ids, place = np.unique(request.tokens, return_inverse=True)
    counts = 2 * np.bincount(place[request.num_prompt_tokens :], minlength=ids.size)
    counts[place[: request.num_prompt_tokens]] |= 1
    return np.concatenate([ids, counts]).astype(np.int32)
