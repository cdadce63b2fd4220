"""Conversations over several turns, in virtual time (tools/routing_model.py): where they go is what routing is for."""

from pathlib import Path

import msgspec
import pytest
from routing_model import BLOCK_SIZE, LOADS, Run
from sim_models import write_model

from albireo.checkpoint import read_checkpoint
from albireo.config import RoutingPolicy
from albireo.sim.roofline import Roofline
from albireo.sim.spec import read_spec

LOAD = msgspec.structs.replace(
    LOADS["documents"], rate=10.0, turns=4, seconds=12.0, warmup_s=4.0, think_s=0.5, output_tokens=40
)
KV_TOKENS = 40_000


def cached_share(folder: Path, policy: RoutingPolicy, num_frontends: int) -> float:
    """Of the prompts' tokens, with four replicas that are busy."""
    model = read_checkpoint(write_model(folder, "qwen3-14b"), check_weights=False).model
    roofline = Roofline(model, 1, "bfloat16", read_spec("h100"))
    run = Run(policy, LOAD, 4, num_frontends, KV_TOKENS // BLOCK_SIZE, roofline, model.vocab_size, seed=1)
    assert len(run.answers) > 50
    return sum(answer.num_cached for answer in run.answers) / sum(answer.num_prompt for answer in run.answers)


@pytest.mark.parametrize("num_frontends", [1, 3])
def test_conversations_find_their_cache_again_whichever_frontend_they_come_to(
    num_frontends: int, tmp_path: Path
) -> None:
    """0.84 and 0.88. Where frontends do not hear of each other it is 0.54 with three, and where all of a prompt that
    waits is counted as work, 0.59 with one."""
    assert cached_share(tmp_path, "cache-aware", num_frontends) > 0.75


def test_in_turns_they_do_not(tmp_path: Path) -> None:
    assert cached_share(tmp_path, "round-robin", 1) < 0.6
