"""Sampling parameters on the device, one entry per request slot, and what they need to know of the sequence.

Written when a request is admitted (`admit`) and after each sampled token (`observe`); `params` says what they mean.
Every rank holds all of it: penalties and the like are lists of token ids, short beside a vocabulary, from which each
rank takes those that lie in its share.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from albireo import limits
from albireo.gpu_worker.sampling.history_kernel import history_arguments, observe_kernel

Int32s = npt.NDArray[np.int32]

_PLAIN_FIELDS: Final = (
    "temperature", "top_p", "min_p", "top_k", "num_logprobs", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "min_position", "stop_ids", "num_eos_ids", "num_stop_ids", "num_bias", "bad_words_size",
    "num_seen", "num_recent", "has_grammar",
)  # fmt: skip
"""Arrays that have the name and the meaning of a field of `layout.ADMISSION`."""


class SamplingTable:
    """Arrays `[num_slots]` and `[num_slots, ...]`. Pages of the wide ones that nobody asks for cost nothing."""

    def __init__(self, num_slots: int, max_model_len: int, masks: npt.NDArray[np.int32] | None = None) -> None:
        """`masks`: int32 [num_slots, words], what each slot may sample next (`shm.grammar_masks`), in shared memory;
        None where no slot has a grammar."""
        n = num_slots
        self.masks = np.zeros((n, 1), np.int32) if masks is None else masks
        self.has_grammar = np.zeros(n, np.bool_)
        """only tokens in the slot's mask may be sampled"""
        self.temperature = np.zeros(n, np.float32)
        """0 is greedy"""
        self.top_p = np.ones(n, np.float32)
        """in (0, 1]; 1 is off"""
        self.min_p = np.zeros(n, np.float32)
        """in [0, 1]; 0 is off"""
        self.top_k = np.zeros(n, np.int32)
        """0 is off"""
        self.seed = np.zeros(n, np.int64)
        """the bits of the request's uint64 seed"""
        self.num_logprobs = np.full(n, -1, np.int32)
        """-1 is off; n: the sampled token's logprob and those of the n most likely"""
        self.repetition_penalty = np.ones(n, np.float32)
        self.presence_penalty = np.zeros(n, np.float32)
        self.frequency_penalty = np.zeros(n, np.float32)
        self.min_position = np.zeros(n, np.int32)
        """EOS and stop ids may not be sampled at positions below it"""
        self.stop_ids = np.zeros((n, limits.MAX_STOP_TOKEN_IDS), np.int32)
        """`num_eos_ids` EOS ids, behind them `num_stop_ids` stop ids"""
        self.num_eos_ids = np.zeros(n, np.int32)
        self.num_stop_ids = np.zeros(n, np.int32)
        self.bias_ids = np.zeros((n, limits.MAX_LOGIT_BIAS), np.int32)
        self.bias_values = np.zeros((n, limits.MAX_LOGIT_BIAS), np.float32)
        self.num_bias = np.zeros(n, np.int32)
        self.bad_words = np.zeros((n, limits.MAX_BAD_WORDS_ENTRIES), np.int32)
        """for each word its length and its token ids"""
        self.bad_words_size = np.zeros(n, np.int32)
        """entries of `bad_words`"""
        self.seen_ids = np.zeros((n, max_model_len + 1), np.int32)
        """under penalties: distinct tokens of the sequence, in no order"""
        self.seen_counts = np.zeros((n, max_model_len + 1), np.int32)
        """2 * (times in the output) + (1 if in the prompt)"""
        self.num_seen = np.zeros(n, np.int32)
        self.recent = np.zeros((n, limits.MAX_BAD_WORD_TOKENS - 1), np.int32)
        """under bad words: the newest output tokens, oldest first"""
        self.num_recent = np.zeros(n, np.int32)
        self.has_penalties = np.zeros(n, np.bool_)
        """any of the three penalties is on: `seen_*` is kept up to date"""
        self.is_special = np.zeros(n, np.bool_)
        """penalties, bias, bad words or a grammar: rows of this slot are always adjusted; others only below
        `min_position`"""
        self.has_history = np.zeros(n, np.bool_)
        """penalties or bad words: `observe` has something to note"""
        self._history_arguments = history_arguments(
            self.has_penalties, self.bad_words_size, self.seen_ids, self.seen_counts, self.num_seen, self.recent,
            self.num_recent,
        )  # fmt: skip
        observe_kernel()  # compiled at start, not in a request's first step

    def admit(self, entries: npt.NDArray[Any], extras: Int32s) -> None:
        """Enters requests (`layout.ADMISSION` [n]) with what the plan's `extras` hold of them.

        Nothing of a slot's former owner stays: every count is overwritten, and nothing behind a count is ever read.
        """
        slots = entries["slot"]
        for name in _PLAIN_FIELDS:
            getattr(self, name)[slots] = entries[name]
        self.seed[slots] = entries["seed"].view(np.int64)
        has_penalties = entries["repetition_penalty"] != 1.0
        has_penalties |= (entries["presence_penalty"] != 0.0) | (entries["frequency_penalty"] != 0.0)
        self.has_penalties[slots] = has_penalties
        has_history = has_penalties | (entries["bad_words_size"] > 0)
        self.has_history[slots] = has_history
        self.is_special[slots] = has_history | (entries["num_bias"] > 0) | (entries["has_grammar"] != 0)
        num_extras = entries["num_bias"] + entries["bad_words_size"] + entries["num_seen"] + entries["num_recent"]
        for entry in entries[num_extras > 0]:
            self._admit_extras(entry, extras)

    def _admit_extras(self, entry: Any, extras: Int32s) -> None:
        slot, at = int(entry["slot"]), int(entry["extras_start"])

        def take(count: int) -> Int32s:
            nonlocal at
            at += count
            return extras[at - count : at]

        num_bias, num_seen = int(entry["num_bias"]), int(entry["num_seen"])
        bad_words_size, num_recent = int(entry["bad_words_size"]), int(entry["num_recent"])
        self.bias_ids[slot, :num_bias] = take(num_bias)
        self.bias_values[slot, :num_bias] = take(num_bias).view(np.float32)
        self.bad_words[slot, :bad_words_size] = take(bad_words_size)
        self.seen_ids[slot, :num_seen] = take(num_seen)
        self.seen_counts[slot, :num_seen] = take(num_seen)
        self.recent[slot, :num_recent] = take(num_recent)

    def observe(self, slots: Int32s, tokens: Int32s) -> None:
        """These tokens (int32 [n_rows]) were sampled for these slots (int32 [n_rows], each once).
        One call into compiled code, and none where no slot's history matters."""
        if not np.count_nonzero(self.has_history.take(slots)):
            return
        slots, tokens = np.ascontiguousarray(slots, np.int32), np.ascontiguousarray(tokens, np.int32)
        observe_kernel()((slots.size, slots.ctypes.data, tokens.ctypes.data, *self._history_arguments), 1)
