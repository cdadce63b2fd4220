"""An engine with work that runs no step is stuck; one that computes, waits for workers or has nothing to do is not."""

import numpy as np
import pytest

from albireo.shm import layout
from albireo.shm.stats import EngineStats
from albireo.supervisor.engine_watch import EngineWatch

SECOND = 1_000_000_000


class Engine:
    """Counters that tests move, and a watch with a timeout of 60 seconds on them."""

    def __init__(self) -> None:
        self.stats = EngineStats.__new__(EngineStats)
        self.stats.engine = np.zeros(1, layout.ENGINE_STATS)
        self.stats.workers = np.zeros(2, layout.WORKER_HEARTBEAT)
        self.watch = EngineWatch(self.stats, 60 * SECOND)
        self.now_ns = SECOND

    def pass_time(self, seconds: float, is_whole: bool = True, steps: int = 0) -> bool:
        for _ in range(int(4 * seconds)):
            self.now_ns += SECOND // 4
            self.stats.engine["num_confirmed_steps"] += steps
            if self.watch.is_stuck(self.now_ns, is_whole):
                return True
        return False


@pytest.fixture
def engine() -> Engine:
    engine = Engine()
    engine.stats.engine["num_running"] = 1
    return engine


def test_one_with_work_and_no_step_is_stuck_after_the_timeout(engine: Engine) -> None:
    assert not engine.pass_time(59)
    assert engine.pass_time(2)


def test_one_that_confirms_steps_or_has_nothing_to_do_is_not(engine: Engine) -> None:
    assert not engine.pass_time(300, steps=1)
    engine.stats.engine["num_running"] = 0
    assert not engine.pass_time(300)


def test_a_step_that_takes_minutes_is_the_ranks_watch_s_business(engine: Engine) -> None:
    engine.stats.workers["running_step"][1] = 7
    assert not engine.pass_time(300)


def test_a_minute_begins_when_the_workers_are_back(engine: Engine) -> None:
    assert not engine.pass_time(300, is_whole=False)
    assert not engine.pass_time(59)
    assert engine.pass_time(2)
