"""Decode steps of one replica among several, from made-up flight records."""

import numpy as np
import pytest

from albireo.shm.flight import FlightLog, Part
from albireo.shm.layout import FLIGHT_RECORD
from albireo.tune.figures import StepCost
from albireo.tune.step_cost import step_cost

Record = tuple[int, int, int, Part, int, int]
"""step, begin, end, part, rank, rows"""


def replica(number: int, num_steps: int, period_ns: int, collective_ns: int = 0, rows: int = 4) -> list[FlightLog]:
    """One of two ranks: a tenth of each period is a gap, and the collective lies at the beginning of the work."""
    gap_ns = period_ns // 10
    coordinator: list[Record] = []
    worker: list[Record] = []
    for step in range(1, num_steps + 1):
        begin_ns, end_ns = step * period_ns + gap_ns, (step + 1) * period_ns
        coordinator += [(step, begin_ns - gap_ns, begin_ns, Part.EXPOSED, 0, 0), (step, 1, 2, Part.SCHEDULE, 0, rows)]
        worker.append((step, begin_ns, end_ns, Part.FORWARD, 0, rows))
        if collective_ns:
            worker.append((step, begin_ns, begin_ns + collective_ns, Part.COLLECTIVE, 0, rows))
    logs = {f"coordinator-{number}": coordinator, f"worker-{2 * number}": worker, f"worker-{2 * number + 1}": worker}
    return [FlightLog(name, 7, np.array(records, FLIGHT_RECORD), 0) for name, records in logs.items()]


def test_the_replica_with_the_most_steps_is_taken_under_its_own_times() -> None:
    logs = [*replica(0, 5, 10_000, 1_000), *replica(1, 9, 20_000, 3_000)]
    assert step_cost(logs, 2, 4, 0) == StepCost(4, 8, 20.0, 18.0, 2.0, 3.0)


def test_only_steps_of_the_batch_that_began_later_count() -> None:
    logs = replica(0, 9, 10_000, 1_000)
    assert step_cost(logs, 1, 5, 0) is None
    later = step_cost(logs, 1, 4, 60_000)
    assert later is not None
    assert later.num_steps == 3


@pytest.mark.parametrize(("degree", "expected"), [(2, None), (1, 0.0)])
def test_ranks_that_record_no_collective_leave_it_unknown_and_one_rank_has_none(
    degree: int, expected: float | None
) -> None:
    logs = [log for log in replica(0, 5, 10_000) if degree == 2 or log.name != "worker-1"]
    cost = step_cost(logs, 1, 4, 0)
    assert cost is not None
    assert cost.collective_us == expected
