"""Ranks as real processes: shared memory against gloo and plain torch calls, stopped ranks, ranks that left."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collective_ranks import Group, Ranks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from albireo.messages import CollectiveKind

COUNTS = st.one_of(st.integers(0, 200), st.sampled_from([1023, 1500, 4096, 5001, 20_000]))
"""Elements: none, one, odd ones, what just fills a buffer, and what takes many pieces."""
REDUCES = st.fixed_dictionaries(
    {
        "kind": st.just("all_reduce"), "dtype": st.sampled_from(["float32", "bfloat16"]), "count": COUNTS,
        "seed": st.integers(0, 1000), "whole": st.booleans(), "residual": st.booleans(),
    }
)  # fmt: skip
MOVES = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["all_gather", "all_to_all"]), "count": COUNTS, "seed": st.integers(0, 1000),
        "dtype": st.sampled_from(["float32", "bfloat16", "int64", "int8"]), "whole": st.just(True),
    }
)  # fmt: skip


def gather(count: int) -> dict[str, Any]:
    return {"kind": "all_gather", "dtype": "uint8", "count": count, "seed": 0, "whole": True}


def reduce(count: int) -> dict[str, Any]:
    settings = {"seed": 0, "whole": True, "residual": False}
    return {"kind": "all_reduce", "dtype": "float32", "count": count, **settings}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    # some spin and some sleep at once: both ways of waiting have to be right
    groups = {
        f"against-gloo-{size}": Group(size, spin_rounds) for size, spin_rounds in ((2, 500), (3, 0), (4, 20), (8, 0))
    }
    groups |= {name: Group(3, 500) for name in ("stopped", "left", "apart", "awaited")}
    started = Ranks(groups)
    yield started
    started.close()


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_every_sequence_of_operations_gives_what_gloo_gives(
    ranks: Ranks, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    group = ranks.groups[f"against-gloo-{size}"]
    gloo_file = str(Path(tmp_path_factory.mktemp("gloo")) / "meeting")

    @settings(max_examples=40 if size < 8 else 15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.one_of(REDUCES, MOVES), min_size=1, max_size=10), st.booleans(), st.integers(0, 99))
    def check(operations: list[dict[str, Any]], delayed: bool, delay_seed: int) -> None:
        answers = group.run(operations, delayed=delayed, delay_seed=delay_seed, gloo_file=gloo_file)
        for answer in answers:
            assert answer.get("error") is None
            assert answer["wrong"] == []
        assert len({answer["digest"] for answer in answers}) == 1, "ranks differ in a bit of a sum"

    check()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_awaited(group: Group, waiter: int, rank: int, kind: CollectiveKind) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if group.heartbeats["waiting_for"][waiter] == 1 + rank:
            assert group.heartbeats["waiting_in"][waiter] == kind
            return
        time.sleep(0.02)
    pytest.fail(f"rank {waiter} never said that it waits for rank {rank}")


def test_ranks_that_wait_for_a_stopped_one_name_it_use_no_cpu_and_go_on_when_it_does(ranks: Ranks) -> None:
    group = ranks.groups["stopped"]
    group.run([gather(10)])
    os.kill(group.pids[1], signal.SIGSTOP)
    try:
        for rank in range(3):
            group.send(rank, [reduce(5000), gather(10)])
        for rank in (0, 2):
            wait_until_awaited(group, rank, 1, CollectiveKind.ALL_REDUCE)
        used = [cpu_seconds(group.pids[rank]) for rank in (0, 2)]
        beats = group.heartbeats["heartbeat_ns"].copy()
        time.sleep(1.0)
        spent = [cpu_seconds(group.pids[rank]) - before for rank, before in zip((0, 2), used, strict=True)]
        assert max(spent) < 0.3, "of a second's wait"
        moved_ns = group.heartbeats["heartbeat_ns"] - beats
        assert moved_ns[0] > 0 and moved_ns[2] > 0, "a rank that waits is alive"
        assert moved_ns[1] == 0, "the stopped one is not"
        assert list(group.heartbeats["collective"]) == [2, 1, 2], "two have begun the operation"
    finally:
        os.kill(group.pids[1], signal.SIGCONT)
    assert all("error" not in group.receive(rank) for rank in range(3))
    assert not group.heartbeats["waiting_for"].any() and not group.heartbeats["waiting_in"].any()
    assert list(group.heartbeats["collective"]) == [3, 3, 3]


def test_an_operation_that_waits_for_a_rank_that_has_left_fails_and_says_which(ranks: Ranks) -> None:
    group = ranks.groups["left"]
    group.run([gather(10)])
    group.send(2, [], close=True)
    group.receive(2)
    for rank in (0, 1):
        group.send(rank, [reduce(10)])
    for rank in (0, 1):
        assert group.receive(rank)["error"].startswith("GroupClosedError: rank 2 has left the group")


def test_a_rank_that_leaves_ends_an_operation_that_already_waits_for_it(ranks: Ranks) -> None:
    group = ranks.groups["awaited"]
    group.send(0, [reduce(10)])
    wait_until_awaited(group, 0, 1, CollectiveKind.ALL_REDUCE)
    group.send(1, [], close=True)
    group.receive(1)
    assert group.receive(0)["error"].startswith("GroupClosedError: rank 1 has left the group")


def test_ranks_in_different_operations_fail_instead_of_taking_each_other_s_bytes(ranks: Ranks) -> None:
    group = ranks.groups["apart"]
    for rank, operation in enumerate([reduce(10), reduce(10), gather(40)]):
        group.send(rank, [operation])
    for rank in range(3):
        assert "different collectives" in group.receive(rank)["error"]
