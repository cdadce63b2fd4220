"""The random numbers of `sampling.philox` on the device, and the draw's scores."""

import triton
import triton.language as tl

from albireo.gpu_worker.cuda.kernels.ordered_logits import KEY_NEG_INF, LAST_ID, NO_KEY, value_of


@triton.jit
def philox_words(seed, position, counters):
    """The four words of each block: uint32 like `counters`, which are int32."""
    zero = counters * 0
    return tl.philox(seed, counters, zero + position, zero, zero)


@triton.jit
def words_of_tile(seed, position, start, TILE: tl.constexpr):
    """Words of the tokens [start, start + TILE), one Philox block for four of them; `start` is a multiple of 4."""
    a, b, c, d = philox_words(seed, position, start // 4 + tl.arange(0, TILE // 4))
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def words_of_ids(seed, position, ids):
    a, b, c, d = philox_words(seed, position, ids // 4)
    lane = ids % 4
    return tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d))


@triton.jit
def best_of_tile(keys, ids, words, inv_t, best, winner):
    """(score, id) of the largest v / T + g of a tile, or of the best so far where that is larger; the smallest id
    among equals. Entries with NO_KEY do not take part.

    Two float64 logarithms for every token would cost more than all the rest, so a tile that cannot win is passed over
    by a bound in float32: -log(-log(u)) <= -log(1 - u), and the bits of a positive float, read as an integer, are its
    log2 to within 0.086 from below (Mitchell 1962). Rounding adds far less than 1e-3, and 1e-6 of the score.
    """
    value = value_of(tl.maximum(keys, KEY_NEG_INF))
    is_steep = inv_t > 3e38
    scale = tl.where(is_steep, 0.0, inv_t).to(tl.float32)
    bits = ((words ^ 0xFFFFFFFF).to(tl.float32) + 0.5).to(tl.int32, bitcast=True)
    noise = (159.0 - bits.to(tl.float32) * 1.1920928955078125e-07) * 0.6931472  # 2^-23, log 2
    bound = tl.max(tl.where(keys == NO_KEY, float("-inf"), value * scale + noise), 0)
    bound += 1e-3 + 1e-6 * tl.abs(bound)
    # a NaN, of infinite bounds, proves nothing
    if is_steep | ((bound.to(tl.float64) < best) == 0):
        u = (words.to(tl.float64) + 0.5) * 2.3283064365386963e-10
        score = value.to(tl.float64) * inv_t + -tl.log(-tl.log(u))
        score = tl.where(keys == NO_KEY, float("-inf"), score)
        highest = tl.max(score, 0)
        first = tl.min(tl.where((score == highest) & (keys != NO_KEY), ids, LAST_ID), 0)
        better = (highest > best) | ((highest == best) & (first < winner))
        best = tl.where(better, highest, best)
        winner = tl.where(better, first, winner)
    return best, winner
