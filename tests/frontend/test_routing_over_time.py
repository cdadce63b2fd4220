"""Conversations over several turns, in virtual time (tools/routing_model.py): where they go is what routing is for."""

import msgspec
import pytest
from routing_model import LOADS, Run, engine_plan

from albireo.config import RoutingPolicy

LOAD = msgspec.structs.replace(
    LOADS["documents"], rate=10.0, turns=4, seconds=12.0, warmup_s=4.0, think_s=0.5, output_tokens=40
)
KV_GIB = 6.1
"""Of each: 40,000 tokens."""


def cached_share(policy: RoutingPolicy, num_frontends: int) -> float:
    """Of the prompts' tokens, with four replicas that are busy."""
    run = Run(policy, LOAD, 4, num_frontends, engine_plan("qwen3-14b", "h100", KV_GIB), seed=1)
    assert len(run.answers) > 50
    return sum(answer.num_cached for answer in run.answers) / sum(answer.num_prompt for answer in run.answers)


@pytest.mark.parametrize("num_frontends", [1, 3])
def test_conversations_find_their_cache_again_whichever_frontend_they_come_to(num_frontends: int) -> None:
    """0.84 and 0.88. Where frontends do not hear of each other it is 0.54 with three, and where all of a prompt that
    waits is counted as work, 0.59 with one."""
    assert cached_share("cache-aware", num_frontends) > 0.75


def test_in_turns_they_do_not() -> None:
    assert cached_share("round-robin", 1) < 0.6
