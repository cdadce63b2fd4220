"""A process whose loop no longer turns is named; one that starts, or has just begun anew, is not."""

import pytest

from albireo.supervisor.process_watch import ProcessWatch

SECOND = 1_000_000_000


class Processes:
    """Beats that tests move, and a watch with a timeout of 3 seconds on them."""

    def __init__(self) -> None:
        self.beats = {name: memoryview(bytearray(8)).cast("q") for name in ("a", "b")}
        self.watch = ProcessWatch(self.beats, 3 * SECOND)
        self.now_ns = SECOND

    def pass_time(self, seconds: float, *alive: str, tick: float = 0.25) -> list[str]:
        for _ in range(int(seconds / tick)):
            self.now_ns += int(tick * SECOND)
            for name in alive:
                self.beats[name][0] = self.now_ns
            if stuck := self.watch.check(self.now_ns):
                return stuck
        return []


@pytest.fixture
def processes() -> Processes:
    return Processes()


def test_one_that_beats_and_one_that_has_not_begun_are_left_alone(processes: Processes) -> None:
    assert processes.pass_time(60, "a") == []


def test_one_that_stops_is_named_after_the_timeout(processes: Processes) -> None:
    processes.pass_time(1, "a", "b")
    assert processes.pass_time(2.5, "a") == []
    assert processes.pass_time(1, "a") == ["b"]


def test_its_successor_has_as_long_as_it_takes_to_begin(processes: Processes) -> None:
    processes.pass_time(1, "a", "b")
    assert processes.pass_time(10, "a") == ["b"]
    processes.watch.forget("b")
    assert processes.pass_time(60, "a") == []
    processes.pass_time(1, "a", "b")
    assert processes.pass_time(10, "a") == ["b"]


def test_one_that_has_not_begun_is_known(processes: Processes) -> None:
    processes.pass_time(1, "a")
    assert processes.watch.has_begun("a") and not processes.watch.has_begun("b")


def test_a_supervisor_that_was_stopped_itself_blames_nobody(processes: Processes) -> None:
    processes.pass_time(1, "a", "b")
    assert processes.pass_time(120, tick=60) == []
