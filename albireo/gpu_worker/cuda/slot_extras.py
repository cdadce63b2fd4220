"""What only some requests have, on the device: token counts for penalties, biases, bad words and the newest tokens."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from albireo.limits import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_LOGIT_BIAS

NO_TOKEN: Final = -2
"""In `recent`, in front of the output's first token: equal to no token of a word."""
ANY_TOKEN: Final = -1
"""In `word_beginnings`, in front of a word's first token; in `word_lasts` where there is no word."""

Int32s = NDArray[np.int32]


class SlotExtras:
    """Arrays `[num_slots, ...]` on the device, of which a row is read only where its `layout.ADMISSION` says so.

    counts           int16 [.., vocab], read as 16 bits without a sign: 2 * (times in the output) + (1 if in the
                     prompt), exact up to 32,767 times; of slots under penalties
    bias_ids         int32 [.., MAX_LOGIT_BIAS], and bias_values, float32
    word_lasts       int32 [.., MAX_BAD_WORDS]: each word's last token
    word_beginnings  int32 [.., MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS]: its tokens in front of the last, at the right
    recent           int32 [.., MAX_BAD_WORD_TOKENS]: the newest output tokens, the newest at the right; under bad words
    """

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        n, words, length = num_slots, MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS
        self.counts = torch.zeros(n, vocab_size, dtype=torch.int16, device=device)
        self.bias_ids = torch.zeros(n, MAX_LOGIT_BIAS, dtype=torch.int32, device=device)
        self.bias_values = torch.zeros(n, MAX_LOGIT_BIAS, dtype=torch.float32, device=device)
        self.word_lasts = torch.full((n, words), ANY_TOKEN, dtype=torch.int32, device=device)
        self.word_beginnings = torch.full((n, words, length), ANY_TOKEN, dtype=torch.int32, device=device)
        self.recent = torch.full((n, length), NO_TOKEN, dtype=torch.int32, device=device)

    def admit(self, entries: NDArray[Any], extras: Int32s) -> None:
        """Enters those requests of `entries` (`layout.ADMISSION` [n]) that have any of it; nothing that is read
        later stays of a slot's former owner. One copy to the device, then a few copies within it."""
        has_penalties = entries["repetition_penalty"] != 1.0
        has_penalties |= (entries["presence_penalty"] != 0.0) | (entries["frequency_penalty"] != 0.0)
        special = has_penalties | (entries["num_bias"] > 0) | (entries["bad_words_size"] > 0)
        if not special.any():
            return
        parts: list[Int32s] = []
        for entry, is_counted in zip(entries[special], has_penalties[special], strict=True):
            parts.extend(self._parts(entry, extras, bool(is_counted)))
        sent = iter(torch.split(self._send(np.concatenate(parts)), [part.size for part in parts]))
        for entry, is_counted in zip(entries[special], has_penalties[special], strict=True):
            self._enter(int(entry["slot"]), entry, bool(is_counted), sent)

    def _send(self, packed: Int32s) -> Tensor:
        host = torch.from_numpy(packed)
        if self.counts.device.type != "cuda":
            return host
        return host.pin_memory().to(self.counts.device, non_blocking=True)

    def _parts(self, entry: Any, extras: Int32s, is_counted: bool) -> Iterator[Int32s]:
        """What `_enter` takes of the request, as int32."""
        at = int(entry["extras_start"])
        num_bias, num_seen = int(entry["num_bias"]), int(entry["num_seen"])
        sizes = (num_bias, num_bias, int(entry["bad_words_size"]), num_seen, num_seen, int(entry["num_recent"]))
        ends = np.cumsum([at, *sizes])
        bias_ids, biases, words, seen, counts, newest = (extras[a:b] for a, b in pairwise(ends.tolist()))
        if num_bias:
            yield from (bias_ids, biases)
        if words.size:
            yield from _aligned_words(words)
            recent = np.full(MAX_BAD_WORD_TOKENS, NO_TOKEN, np.int32)
            recent[MAX_BAD_WORD_TOKENS - newest.size :] = newest
            yield recent
        if is_counted:
            inside = seen < self.counts.shape[1]
            yield seen[inside]
            yield np.where(counts > 0xFFFF, 0xFFFE | (counts & 1), counts)[inside].astype(np.int32)

    def _enter(self, slot: int, entry: Any, is_counted: bool, sent: Iterator[Tensor]) -> None:
        num_bias = int(entry["num_bias"])
        if num_bias:
            self.bias_ids[slot, :num_bias] = next(sent)
            self.bias_values[slot, :num_bias] = next(sent).view(torch.float32)
        if entry["bad_words_size"]:
            self.word_lasts[slot] = next(sent)
            self.word_beginnings[slot] = next(sent).view(MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS)
            self.recent[slot] = next(sent)
        if is_counted:
            ids, counts = next(sent), next(sent)
            self.counts[slot].zero_().scatter_(0, ids.long(), counts.short())


def _aligned_words(words: Int32s) -> tuple[Int32s, Int32s]:
    """(last tokens [MAX_BAD_WORDS], beginnings [MAX_BAD_WORDS * MAX_BAD_WORD_TOKENS]) of words that each follow their
    length."""
    lasts = np.full(MAX_BAD_WORDS, ANY_TOKEN, np.int32)
    beginnings = np.full((MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS), ANY_TOKEN, np.int32)
    at = number = 0
    while at < words.size:
        length = int(words[at])
        word = words[at + 1 : at + 1 + length]
        if length:
            lasts[number] = word[-1]
            beginnings[number, MAX_BAD_WORD_TOKENS - (length - 1) :] = word[:-1]
            number += 1
        at += 1 + length
    return lasts, beginnings.reshape(-1)
