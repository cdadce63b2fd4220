import numpy as np
import pytest

from albireo.shm.flight import FlightLog
from albireo.shm.layout import FLIGHT_RECORD
from albireo.trace.replicas import of_replica
from albireo.trace.source import TraceError

NAMES = ("frontend-0", "coordinator-0", "grammar-0", "worker-0", "worker-1",
         "coordinator-1", "grammar-1", "worker-2", "worker-3")  # fmt: skip


def logs(*names: str) -> list[FlightLog]:
    """Each has its own place among NAMES as its pid."""
    return [FlightLog(name, NAMES.index(name), np.zeros(0, FLIGHT_RECORD), 0) for name in names]


@pytest.mark.parametrize(("number", "pids"), [(None, [0, 1, 2, 3, 4]), (0, [0, 1, 2, 3, 4]), (1, [0, 5, 6, 7, 8])])
def test_a_replica_is_shown_as_if_it_were_alone(number: int | None, pids: list[int]) -> None:
    chosen = of_replica(logs(*NAMES), number)
    assert [log.name for log in chosen] == ["frontend-0", "coordinator-0", "grammar-0", "worker-0", "worker-1"]
    assert [log.pid for log in chosen] == pids


def test_what_a_replica_has_left_in_a_file_is_that_replica_s() -> None:
    chosen = of_replica(logs("coordinator-1", "worker-2", "worker-3"))
    assert [(log.name, log.pid) for log in chosen] == [("coordinator-0", 5), ("worker-0", 7), ("worker-1", 8)]


def test_a_replica_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(TraceError, match="--replica 2: there are records of 0, 1"):
        of_replica(logs(*NAMES), 2)
