"""What a simulated GPU has room for."""

import math

from round_numbers import device, model

from albireo.checkpoint.weight_shapes import weight_bytes, weight_shapes
from albireo.sim.memory import RESERVE_BYTES, RankMemory, rank_memory


def test_one_rank_holds_all_weights_and_t_ranks_a_share_each() -> None:
    whole = rank_memory(model(), 1, "bfloat16", device(), 8, 64)
    assert whole.weights == weight_bytes(model(), "bfloat16")
    quarter = rank_memory(model(), 4, "bfloat16", device(), 8, 64)
    norms = 2 * (2 * 2 + 1) * 512
    assert quarter.weights == (whole.weights - norms) // 4 + norms


def test_a_tied_embedding_is_there_once() -> None:
    tied = model(tie_word_embeddings=True)
    expected = 2 * sum(math.prod(shape) for shape in weight_shapes(tied).values())
    assert rank_memory(tied, 1, "bfloat16", device(), 8, 64).weights == expected


def test_room_is_what_utilization_leaves() -> None:
    memory = RankMemory(total=80 << 30, weights=20 << 30, step=1 << 30)
    assert memory.room(0.5) == (40 << 30) - (21 << 30) - RESERVE_BYTES
    assert memory.room(0.1) < 0
    assert memory.used(memory.room(0.5)) == 40 << 30


def test_the_largest_step_grows_with_its_tokens_and_rows() -> None:
    small, tokens, rows = (
        rank_memory(model(), 1, "bfloat16", device(), *bounds).step for bounds in ((8, 64), (8, 128), (16, 64))
    )
    assert tokens - small == 64 * 2 * (3 * 512 + 3 * 1024)
    assert rows - small == 8 * 2 * 4 * 2048
