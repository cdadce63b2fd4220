"""From a `Submit` to a request. Frontends have checked the same; what slips through must not end the engine."""

import numpy as np
import numpy.typing as npt

from albireo.config import CoordinatorConfig
from albireo.coordinator.request import Request, Tokens
from albireo.limits import MAX_BAD_WORDS_ENTRIES, MAX_STOP_TOKEN_IDS
from albireo.messages import Resumed, Submit


def submitted_tokens(message: Submit) -> npt.NDArray[np.int32]:
    """Prompt, and behind it the output so far; bytes that make no whole token are left out."""
    whole = len(message.prompt_token_ids) // 4 * 4
    return np.frombuffer(message.prompt_token_ids[:whole], np.int32)


def problem_of(message: Submit, tokens: Tokens, config: CoordinatorConfig) -> tuple[str, str] | None:
    """(field, text) of what makes the request impossible, or None."""
    sampling, limit = message.sampling, config.scheduler.max_model_len
    num_outputs = 0 if message.resumed is None else message.resumed.num_output_tokens
    if tokens.size <= num_outputs or tokens.size >= limit:
        return "prompt", f"the prompt has {tokens.size} tokens; between 1 and {limit - 1} are possible"
    if tokens.min() < 0 or tokens.max() >= config.vocab_size:
        return "prompt", f"token ids must lie between 0 and {config.vocab_size - 1}"
    num_eos = 0 if sampling.ignore_eos else len(config.eos_token_ids)
    if num_eos + len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        return "stop_token_ids", f"at most {MAX_STOP_TOKEN_IDS - num_eos} ids are possible"
    if sum(len(word) + 1 for word in sampling.bad_words) > MAX_BAD_WORDS_ENTRIES:
        return "bad_words", f"their tokens, and one more for each word, may be {MAX_BAD_WORDS_ENTRIES} in all"
    return None


def make_request(
    message: Submit, tokens: Tokens, frontend: int, arrival: int, now_ns: int, max_model_len: int
) -> Request:
    """`frontend`: index of the one that sent it. `arrival`: the request's number."""
    resumed = message.resumed or Resumed(0)
    num_prompt = tokens.size - resumed.num_output_tokens
    return Request(
        frontend=frontend,
        request_id=message.request_id,
        sampling=message.sampling,
        tokens=tokens,
        num_output_tokens=resumed.num_output_tokens,
        num_scored=resumed.num_scored,
        num_admissions=0 if message.resumed is None else 1,
        max_total_tokens=min(num_prompt + message.sampling.max_tokens, max_model_len),
        priority=message.priority,
        cache_salt=message.cache_salt,
        sample_group=message.sample_group,
        arrival=arrival,
        arrival_ns=message.arrival_ns or now_ns,
        crashed_at=tokens.size if message.num_crashes else -1,
        num_crashes=message.num_crashes,
    )
