"""What a sampling kernel reads of a slot's `layout.ADMISSION` record, in the device's table int32 [num_slots, 48]."""

import triton
import triton.language as tl

from albireo.shm.layout import ADMISSION


def _word(name):
    """The field's place in the record, in int32 words."""
    return tl.constexpr(ADMISSION.fields[name][1] // 4)  # type: ignore[index]


RECORD_WORDS = tl.constexpr(ADMISSION.itemsize // 4)
SEED = _word("seed")
TEMPERATURE, TOP_P, MIN_P, TOP_K = (_word(name) for name in ("temperature", "top_p", "min_p", "top_k"))
NUM_EOS_IDS, NUM_STOP_IDS, STOP_IDS = (_word(name) for name in ("num_eos_ids", "num_stop_ids", "stop_ids"))
REPETITION, PRESENCE, FREQUENCY = (
    _word(name) for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
)
MIN_POSITION, NUM_BIAS, BAD_WORDS_SIZE = (_word(name) for name in ("min_position", "num_bias", "bad_words_size"))
GENERATION, HAS_GRAMMAR = _word("generation"), _word("has_grammar")


@triton.jit
def int_of(admissions, slot, WORD: tl.constexpr):
    return tl.load(admissions + slot.to(tl.int64) * RECORD_WORDS + WORD)


@triton.jit
def float_of(admissions, slot, WORD: tl.constexpr):
    return int_of(admissions, slot, WORD).to(tl.float32, bitcast=True)


@triton.jit
def seed_of(admissions, slot):
    """uint64"""
    low = int_of(admissions, slot, SEED).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = int_of(admissions, slot, SEED + 1).to(tl.uint32, bitcast=True).to(tl.uint64)
    return low | (high << 32)


@triton.jit
def is_live(slot, alive):
    """Neither padding nor ended."""
    return (slot >= 0) & (tl.load(alive + tl.maximum(slot, 0)) != 0)


@triton.jit
def has_penalties(admissions, slot):
    return (
        (float_of(admissions, slot, REPETITION) != 1.0)
        | (float_of(admissions, slot, PRESENCE) != 0.0)
        | (float_of(admissions, slot, FREQUENCY) != 0.0)
    )


@triton.jit
def is_adjusted(admissions, slot, position):
    """Step A of `params` changes the row's logits."""
    return (
        has_penalties(admissions, slot)
        | (int_of(admissions, slot, HAS_GRAMMAR) != 0)
        | (int_of(admissions, slot, NUM_BIAS) > 0)
        | (int_of(admissions, slot, BAD_WORDS_SIZE) > 0)
        | (position < int_of(admissions, slot, MIN_POSITION))
    )


@triton.jit
def is_filtered(admissions, slot):
    """Sampled among less than the whole vocabulary."""
    asks = (
        (float_of(admissions, slot, MIN_P) > 0.0)
        | (int_of(admissions, slot, TOP_K) > 0)
        | (float_of(admissions, slot, TOP_P) < 1.0)
    )
    return asks & (float_of(admissions, slot, TEMPERATURE) > 0.0)
