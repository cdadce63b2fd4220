"""The load of tools/bench_routing.py: what its clients take an answer to be is what the server said."""

import asyncio

import pytest
from conversations import Conversation, ConversationClients, ConversationSettings, Turn
from server import Server

from albireo.checkpoint import read_checkpoint
from albireo.serve import DEMO_MODEL

pytestmark = pytest.mark.e2e
SETTINGS = ConversationSettings(
    rate=1.0, seconds=60.0, warmup_s=0.0, groups=1, system_tokens=100, turns=3, user_tokens=30, output_tokens=20,
    think_s=0.1,
)  # fmt: skip


def test_an_only_cache_has_of_each_turn_what_was_said_before() -> None:
    system = [200 + number for number in range(100)]
    one, other = (
        Conversation(begin_s, 0, seed, system, [Turn([400 + seed] * 30, 20 + number, 0.01) for number in range(3)])
        for begin_s, seed in ((0.0, 5), (1.0, 6))
    )
    vocab_size = read_checkpoint(DEMO_MODEL, check_weights=False).model.vocab_size
    with Server("--device", "null", "--null-step-ms", "1") as server:
        results = asyncio.run(ConversationClients(server.url, SETTINGS, vocab_size).run([one, other], 30.0))
    assert len(results) == 6
    # by blocks of 16: the system prompt is 100 tokens, a turn 30 and an answer, whose last token is never computed
    assert [result.num_known for result in results] == [0, 144, 192, 96, 144, 192]
    assert [result.outcome.cached_tokens for result in results] == [result.num_known for result in results]
