"""A stuck rank is named, with the step it was in and those that wait for it; a busy or idle one is not."""

import numpy as np
import pytest

from albireo.messages import CollectiveKind
from albireo.shm import layout
from albireo.supervisor.rank_watch import RankWatch

SECOND = 1_000_000_000


class Ranks:
    """Heartbeats that tests move, and a watch with a timeout of 3 seconds on them."""

    def __init__(self, size: int = 3) -> None:
        self.entries = np.zeros(size, layout.WORKER_HEARTBEAT)
        self.watch = RankWatch(self.entries, 3 * SECOND)
        self.now_ns = SECOND

    def pass_time(self, seconds: float, alive: tuple[int, ...], tick: float = 0.25) -> str | None:
        for _ in range(int(seconds / tick)):
            self.now_ns += int(tick * SECOND)
            for rank in alive:
                self.entries["heartbeat_ns"][rank] = self.now_ns
            stuck = self.watch.check(self.now_ns)
            if stuck is not None:
                return stuck
        return None


@pytest.fixture
def ranks() -> Ranks:
    return Ranks()


def test_ranks_whose_hearts_beat_are_left_alone(ranks: Ranks) -> None:
    assert ranks.pass_time(60, (0, 1, 2)) is None


def test_a_silent_rank_is_named_with_its_step_and_those_that_wait(ranks: Ranks) -> None:
    ranks.pass_time(1, (0, 1, 2))
    ranks.entries["running_step"] = [57, 57, 57]
    ranks.entries["waiting_for"] = [2, 0, 2]
    ranks.entries["waiting_in"] = [CollectiveKind.ALL_REDUCE, 0, CollectiveKind.ALL_GATHER]
    stuck = ranks.pass_time(10, (0, 2))
    assert stuck == (
        "worker-1 has not moved for 3.0 s in step 57, awaited by worker-0 in all-reduce of step 57, "
        "worker-2 in all-gather of step 57"
    )


def test_an_idle_rank_that_falls_silent_is_named_too(ranks: Ranks) -> None:
    ranks.pass_time(1, (0, 1, 2))
    ranks.entries["step"] = [9, 9, 9]
    assert ranks.pass_time(10, (0, 1)) == "worker-2 has not moved for 3.0 s after step 9"


def test_a_rank_that_has_not_begun_is_not_blamed_for_loading(ranks: Ranks) -> None:
    assert ranks.pass_time(60, (0, 1)) is None
    assert ranks.pass_time(1, (0, 1, 2)) is None
    stuck = ranks.pass_time(10, (0, 1))
    assert stuck is not None and stuck.startswith("worker-2 has not moved")


def test_silence_that_ends_in_time_is_forgotten(ranks: Ranks) -> None:
    for _ in range(5):
        assert ranks.pass_time(2.5, (0,)) is None
        assert ranks.pass_time(0.25, (0, 1, 2)) is None


def test_a_supervisor_that_was_stopped_itself_blames_nobody(ranks: Ranks) -> None:
    ranks.pass_time(1, (0, 1, 2))
    ranks.now_ns += 3600 * SECOND  # the machine slept, ranks and all
    assert ranks.watch.check(ranks.now_ns) is None
    assert ranks.pass_time(60, (0, 1, 2)) is None


def test_of_a_rank_that_died_it_is_told_where_it_was() -> None:
    ranks = Ranks(2)
    ranks.entries["running_step"] = 12
    ranks.entries["waiting_for"][0] = 2
    ranks.entries["waiting_in"][0] = CollectiveKind.ALL_TO_ALL
    assert ranks.watch.last_seen(1) == " in step 12, awaited by worker-0 in all-to-all of step 12"
    assert ranks.watch.last_seen(0) == " in step 12, waiting for worker-1 in all-to-all"
