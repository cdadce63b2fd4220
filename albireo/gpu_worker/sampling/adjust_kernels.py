"""Step A of `params` on a rank's share of the rows that need it: a copy to float32 and a few entries changed."""

from functools import cache
from typing import Any, Final

import numpy as np
from numba import carray, njit

from albireo.gpu_worker.kernels.launch import CALLED, INLINED, Kernel
from albireo.gpu_worker.kernels.simd import fetch_add, load, offset, pointer, store
from albireo.gpu_worker.sampling.kernels import NEG_INF, value_of

ARGUMENTS: Final = np.dtype(
    [
        (name, "<i8")
        for name in (
            "counter",  # int64, 0 at first: rows that threads have taken
            "num_rows",
            "rows",  # int64 [num_rows]: the batch's rows that are adjusted
            "logits",
            "stride",  # elements from row to row
            "start",  # the share: token ids [start, start + size)
            "size",
            "values",  # float32 [num_rows, size]: the outcome
            "slots",  # int32 [n_rows]
            "positions",  # int64 [n_rows]
            "min_position",  # this and all below: `SamplingTable`'s columns
            "stop_ids",
            "stop_ids_width",
            "num_eos_ids",
            "num_stop_ids",
            "bias_ids",
            "bias_values",
            "bias_width",
            "num_bias",
            "bad_words",
            "bad_words_width",
            "bad_words_size",
            "recent",
            "recent_width",
            "num_recent",
            "has_penalties",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "seen_ids",
            "seen_counts",
            "seen_width",
            "num_seen",
            "has_grammar",
            "masks",
            "masks_width",
        )
    ]
)


@njit(**INLINED)
def _row_of(address: Any, width: Any, slot: Any) -> Any:
    """A slot's int32 [width]."""
    return offset(pointer(address, np.int32), slot * width)


@njit(**INLINED)
def _of_slot(address: Any, slot: Any) -> Any:
    """A slot's int32."""
    return np.int64(pointer(address, np.int32)[slot])


@njit(**INLINED)
def _mask(values: Any, start: Any, token: Any) -> None:
    """Rules out a token, if it lies in the share."""
    i = np.int64(token) - start
    if i >= 0 and i < values.size:
        values[i] = NEG_INF


@njit(**CALLED)
def _mask_bad_words(values: Any, start: Any, words: Any, words_size: Any, recent: Any, num_recent: Any) -> None:
    """Rules out the last token of every word whose other tokens are the newest of the output."""
    at = np.int64(0)
    while at < words_size:
        length = np.int64(words[at])
        matches = length >= 1 and length - 1 <= num_recent
        for i in range(length - 1 if matches else 0):
            matches = matches and words[at + 1 + i] == recent[num_recent - (length - 1) + i]
        if matches:
            _mask(values, start, words[at + length])
        at += 1 + max(np.int64(0), length)


@njit(**CALLED)
def _add_bias(values: Any, start: Any, ids: Any, biases: Any, count: Any) -> None:
    for j in range(count):
        i = np.int64(ids[j]) - start
        if i >= 0 and i < values.size:
            values[i] = np.float32(values[i] + biases[j])


@njit(**CALLED)
def _penalise(
    values: Any, start: Any, ids: Any, counts: Any, count: Any, repetition: Any, presence: Any, frequency: Any
) -> None:
    for j in range(count):
        i = np.int64(ids[j]) - start
        if i >= 0 and i < values.size:
            v = values[i]
            v = np.float32(v / repetition) if v > np.float32(0) else np.float32(v * repetition)
            times = counts[j] >> 1
            if times > 0:
                v = np.float32(v - np.float32(frequency * np.float32(times)))
                v = np.float32(v - presence)
            values[i] = v


@njit(**CALLED)
def _allow(values: Any, start: Any, mask: Any) -> None:
    """Rules out what the mask lacks: token t is bit t % 32 of word t // 32. Most words are all ones or all zeros."""
    for word in range(start >> 5, (start + values.size + 31) >> 5):
        bits = mask[word]
        if bits == -1:
            continue
        first, end = max(word * 32 - start, 0), min(word * 32 + 32 - start, values.size)
        if bits == 0:
            for i in range(first, end):
                values[i] = NEG_INF
        else:
            for i in range(first, end):
                if not (bits >> ((start + i) & 31)) & 1:
                    values[i] = NEG_INF


@njit(**CALLED)
def _adjust(a: Any, values: Any, slot: Any, position: Any) -> None:
    """Step A in its order, on the share of one row."""
    if pointer(a.has_grammar, np.uint8)[slot]:
        _allow(values, a.start, _row_of(a.masks, a.masks_width, slot))
    words_size = _of_slot(a.bad_words_size, slot)
    if words_size > 0:
        words, recent = _row_of(a.bad_words, a.bad_words_width, slot), _row_of(a.recent, a.recent_width, slot)
        _mask_bad_words(values, a.start, words, words_size, recent, _of_slot(a.num_recent, slot))
    if position < _of_slot(a.min_position, slot):
        stop_ids = _row_of(a.stop_ids, a.stop_ids_width, slot)
        for j in range(_of_slot(a.num_eos_ids, slot) + _of_slot(a.num_stop_ids, slot)):
            _mask(values, a.start, stop_ids[j])
    num_bias = _of_slot(a.num_bias, slot)
    if num_bias > 0:
        biases = offset(pointer(a.bias_values, np.float32), slot * a.bias_width)
        _add_bias(values, a.start, _row_of(a.bias_ids, a.bias_width, slot), biases, num_bias)
    if pointer(a.has_penalties, np.uint8)[slot]:
        ids, counts = _row_of(a.seen_ids, a.seen_width, slot), _row_of(a.seen_counts, a.seen_width, slot)
        repetition = pointer(a.repetition_penalty, np.float32)[slot]
        presence = pointer(a.presence_penalty, np.float32)[slot]
        frequency = pointer(a.frequency_penalty, np.float32)[slot]
        _penalise(values, a.start, ids, counts, _of_slot(a.num_seen, slot), repetition, presence, frequency)


@njit(**INLINED)
def _widen(row: Any, values: Any, size: Any) -> None:
    """values[:size] = row[:size] as float32."""
    vectors = size - size % 16
    for j in range(0, vectors, 16):
        store(values, j, load(row, j))
    for j in range(vectors, size):
        values[j] = value_of(row[j])


@cache
def adjust_kernel(element: type[np.generic]) -> Kernel:
    """Fills in `values` from the batch's `rows`. `element`: np.uint16 for bf16, np.float32."""

    def adjust(arguments: Any) -> None:
        a = carray(arguments, 1)[0]
        logits, rows = pointer(a.logits, element), pointer(a.rows, np.int64)
        while True:
            i = fetch_add(a.counter, 1)
            if i >= a.num_rows:
                return
            r = rows[i]
            values = offset(pointer(a.values, np.float32), i * a.size)
            _widen(offset(logits, r * a.stride), values, a.size)
            slot, position = np.int64(pointer(a.slots, np.int32)[r]), pointer(a.positions, np.int64)[r]
            _adjust(a, carray(values, (a.size,)), slot, position)

    return Kernel(adjust, ARGUMENTS)
