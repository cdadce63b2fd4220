"""Step A of `sampling.params`: grammar, bad words, min_tokens, logit_bias and penalties, for rows that ask for them.

To be launched without fusing products and sums: each operation is rounded once.
"""

import triton
import triton.language as tl

from albireo.gpu_worker.cuda.kernels.admission import (
    BAD_WORDS_SIZE,
    FREQUENCY,
    HAS_GRAMMAR,
    MIN_POSITION,
    NUM_BIAS,
    NUM_EOS_IDS,
    NUM_STOP_IDS,
    PRESENCE,
    RECORD_WORDS,
    REPETITION,
    STOP_IDS,
    float_of,
    has_penalties,
    int_of,
    is_adjusted,
    is_live,
)


@triton.jit
def load_counts(counts, ids, mask):
    """int32; stored as the low 16 bits."""
    return tl.load(counts + ids, mask=mask, other=0).to(tl.int32) & 0xFFFF


@triton.jit
def _is_allowed(allowed, has_grammar, ids, mask):
    """By the grammar's mask; without one, everything is."""
    word = tl.load(allowed + (ids >> 5), mask=mask & has_grammar, other=-1)
    return ((word >> (ids & 31)) & 1) != 0


@triton.jit
def _penalised(value, counts, repetition, presence, frequency):
    """`counts`: 2 * (times in the output) + (1 if in the prompt). The division is rounded to float64 first, which
    changes no float32 quotient."""
    divided = (value.to(tl.float64) / repetition.to(tl.float64)).to(tl.float32)
    repeated = tl.where(value > 0.0, divided, value * repetition)
    value = tl.where(counts > 0, repeated, value)
    times = counts >> 1
    lowered = value - frequency * times.to(tl.float32)
    return tl.where(times > 0, lowered - presence, value)


@triton.jit
def _penalise_split(logits, adjusted, allowed, has_grammar, counts, are_counted, repetition, presence, frequency,
                    first_tile, last_tile, VOCAB: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    for tile in range(first_tile, last_tile):
        ids = tile * TILE + tl.arange(0, TILE)
        inside = ids < VOCAB
        value = tl.load(logits + ids, mask=inside, other=0.0).to(tl.float32)
        if are_counted:
            count = load_counts(counts, ids, inside)
            if tl.max(count, 0) > 0:
                value = _penalised(value, count, repetition, presence, frequency)
        value = tl.where(_is_allowed(allowed, has_grammar, ids, inside), value, float("-inf"))
        tl.store(adjusted + ids, value, mask=inside)


@triton.jit
def _bias_split(logits, adjusted, counts, are_counted, repetition, presence, frequency, ids, biases, mask):
    """Once more for the tokens that have a bias, which comes first."""
    value = tl.load(logits + ids, mask=mask, other=0.0).to(tl.float32) + biases
    if are_counted:
        value = _penalised(value, load_counts(counts, ids, mask), repetition, presence, frequency)
    tl.store(adjusted + ids, value, mask=mask)


@triton.jit(do_not_specialize=["tiles_per_split"])
def adjust_rows(
    logits, stride, adjusted, admissions, slots, alive, positions, allowed, counts, bias_ids, bias_values, word_lasts,
    word_beginnings, recent, tiles_per_split, VOCAB: tl.constexpr, TILE: tl.constexpr, MAX_BIAS: tl.constexpr,
    MAX_WORDS: tl.constexpr, WORD_TOKENS: tl.constexpr, MAX_STOP_IDS: tl.constexpr, MASK_STRIDE: tl.constexpr,
):  # fmt: skip
    """Grid: (rows, splits). Writes the special rows of `adjusted`, float32 [rows, VOCAB]. `allowed`: `RowMasks`; the
    rest: `SlotExtras`."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    if is_live(slot, alive):
        position = tl.load(positions + row)
        if is_adjusted(admissions, slot, position):
            first_tile = split * tiles_per_split
            last_tile = tl.minimum(first_tile + tiles_per_split, (VOCAB + TILE - 1) // TILE)
            start, end = first_tile * TILE, tl.minimum(last_tile * TILE, VOCAB)
            logits += row * stride
            adjusted += row * VOCAB
            allowed += row * MASK_STRIDE
            counts += slot * VOCAB
            has_grammar = int_of(admissions, slot, HAS_GRAMMAR) != 0
            are_counted = has_penalties(admissions, slot)
            repetition = float_of(admissions, slot, REPETITION)
            presence, frequency = float_of(admissions, slot, PRESENCE), float_of(admissions, slot, FREQUENCY)
            _penalise_split(
                logits, adjusted, allowed, has_grammar, counts, are_counted, repetition, presence, frequency,
                first_tile, last_tile, VOCAB, TILE,
            )  # fmt: skip

            # what is ruled out, here and below, stays at -inf through all that follows it in the order
            num_bias = int_of(admissions, slot, NUM_BIAS)
            if num_bias > 0:
                tl.debug_barrier()  # other threads have written these tokens
                entry = tl.arange(0, MAX_BIAS)
                ids = tl.load(bias_ids + slot * MAX_BIAS + entry, mask=entry < num_bias, other=-1)
                biases = tl.load(bias_values + slot * MAX_BIAS + entry, mask=entry < num_bias, other=0.0)
                mask = (ids >= start) & (ids < end)
                mask &= _is_allowed(allowed, has_grammar, ids, mask)
                _bias_split(
                    logits, adjusted, counts, are_counted, repetition, presence, frequency, ids, biases, mask
                )  # fmt: skip

            if position < int_of(admissions, slot, MIN_POSITION):
                tl.debug_barrier()
                entry = tl.arange(0, MAX_STOP_IDS)
                num_stops = int_of(admissions, slot, NUM_EOS_IDS) + int_of(admissions, slot, NUM_STOP_IDS)
                stops = admissions + slot * RECORD_WORDS + STOP_IDS
                ids = tl.load(stops + entry, mask=entry < num_stops, other=-1)
                tl.store(adjusted + ids, float("-inf"), mask=(ids >= start) & (ids < end))

            if int_of(admissions, slot, BAD_WORDS_SIZE) > 0:
                tl.debug_barrier()
                word, token = tl.arange(0, MAX_WORDS), tl.arange(0, WORD_TOKENS)
                beginnings = tl.load(
                    word_beginnings + slot * (MAX_WORDS * WORD_TOKENS) + word[:, None] * WORD_TOKENS + token[None, :]
                )
                newest = tl.load(recent + slot * WORD_TOKENS + token)
                differ = (beginnings != newest[None, :]) & (beginnings >= 0)
                ids = tl.load(word_lasts + slot * MAX_WORDS + word)
                mask = (tl.max(differ.to(tl.int32), 1) == 0) & (ids >= start) & (ids < end)
                tl.store(adjusted + ids, float("-inf"), mask=mask)
