"""Logits as numbers that sort like them, and their masses: the arithmetic of `sampling.params`.

A key is an int32 that sorts like the float32; -0 like +0, NaN like -inf. A prefix of the order of `params` is given by
its end (key, id): it holds the tokens of larger keys, and those of this key whose id is not larger.
"""

import math

import triton
import triton.language as tl

KEY_INF = tl.constexpr(0x7F800000)
KEY_NEG_INF = tl.constexpr(-0x7F800001)
NO_KEY = tl.constexpr(-0x80000000)
"""Below every token's."""
LAST_ID = tl.constexpr(0x7FFFFFFF)
"""No token's id: a prefix that ends with it holds all tokens of its last key."""
MASS_BITS = tl.constexpr(44)

_LOG2_E = tl.constexpr(1.0 / math.log(2.0))
_ROUND = tl.constexpr(1.5 * 2.0**52)
_ONE = tl.constexpr(2.0**44)
_C1, _C2, _C3, _C4, _C5, _C6, _C7, _C8, _C9 = (
    tl.constexpr(math.log(2.0) ** k / math.factorial(k)) for k in range(1, 10)
)


@triton.jit
def key_of(value):
    """float32 -> int32"""
    value = tl.where(value == 0.0, 0.0, value)
    bits = value.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(value == value, key, KEY_NEG_INF)  # noqa: PLR0124


@triton.jit
def value_of(key):
    """int32 -> float32"""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def key_at_least(bound):
    """The key of the smallest float32 that is not below the float64 `bound`."""
    rounded = bound.to(tl.float32)
    return key_of(rounded) + (rounded.to(tl.float64) < bound).to(tl.int32)


@triton.jit
def load_keys(logits, adjusted, use_adjusted, ids, VOCAB: tl.constexpr):
    """Keys of a row's tokens `ids`, NO_KEY beyond the vocabulary. The row is the model's own or the adjusted one."""
    inside = ids < VOCAB
    if use_adjusted:
        value = tl.load(adjusted + ids, mask=inside, other=0.0)
    else:
        value = tl.load(logits + ids, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, key_of(value), NO_KEY)


@triton.jit
def mass_of(gap):
    """floor(2^44 e^gap) as int64 for float64 gaps <= 0, by the same operations as `oracle.mass`; the kernel that
    calls it is to be launched without fusing products and sums."""
    exponent = gap * _LOG2_E
    exponent = tl.where(exponent > -63.0, exponent, -63.0)
    whole = (exponent + _ROUND) - _ROUND
    r = exponent - whole
    upper = _C5 + r * (_C6 + r * (_C7 + r * (_C8 + r * _C9)))
    power = 1.0 + r * (_C1 + r * (_C2 + r * (_C3 + r * (_C4 + r * upper))))
    return (power * _ONE).to(tl.int64) >> (-whole).to(tl.int64)


@triton.jit
def mass_of_keys(keys, top_key, inv_t):
    """int64, relative to the finite largest logit; of NO_KEY it is 0."""
    value = value_of(tl.maximum(keys, KEY_NEG_INF)).to(tl.float64)
    return mass_of((value - value_of(top_key).to(tl.float64)) * inv_t)
