"""The least time that a decode step can take: the bytes it must read over the bandwidth that a copy reaches.

Read once in every step: each weight but the embedding table, of which a row per token is (a tied one is the head, and
read whole); and of every sequence the keys and values of its context.
"""

import math

from albireo.checkpoint import ModelConfig
from albireo.checkpoint.weight_shapes import weight_shapes

_EMBEDDING = "model.embed_tokens.weight"


def step_weight_bytes(model: ModelConfig, batch: int, itemsize: int) -> int:
    """Of the weights that a step of `batch` rows reads, `itemsize` bytes a number."""
    shapes = weight_shapes(model)
    table = math.prod(shapes[_EMBEDDING])
    numbers = sum(math.prod(shape) for shape in shapes.values()) - table
    if model.tie_word_embeddings:
        numbers += table
    return itemsize * (numbers + batch * model.hidden_size)


def kv_bytes(model: ModelConfig, context_tokens: float, itemsize: int) -> float:
    """Of the keys and values of so many tokens, over all sequences; windows are taken to be longer than contexts."""
    return 2.0 * itemsize * model.num_layers * model.num_kv_heads * model.head_dim * context_tokens


def floor_ms(model: ModelConfig, batch: int, context_tokens: float, itemsize: int, bytes_per_s: float) -> float:
    """`context_tokens`: of the whole batch."""
    nbytes = step_weight_bytes(model, batch, itemsize) + kv_bytes(model, context_tokens, itemsize)
    return nbytes / bytes_per_s * 1e3


def prefill_steps(batch: int, input_len: int, max_batched_tokens: int) -> int:
    """How many steps pass from the first prompt to the last one's end, when `batch` requests come at once: rows that
    decode already take a token each. Steps in which all decode begin only then."""
    steps = tokens = 0
    while tokens < batch * input_len:
        decoding = tokens // input_len
        tokens += max(1, max_batched_tokens - decoding)
        steps += 1
    return steps
