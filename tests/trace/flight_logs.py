"""Made-up flight records: an engine whose every time is known."""

import numpy as np

from albireo.shm import layout
from albireo.shm.flight import FlightLog, Part

Record = tuple[int, int, int, Part, int, int]
"""step, begin, end, part, rank, rows"""

PERIOD_NS = 10_000
GAP_NS = 1_000
"""Of each period, before the device's work."""
SAMPLE_NS = 2_000
"""Of each step's work, at its end."""


def make_log(name: str, records: list[Record], num_lost: int = 0, pid: int = 7) -> FlightLog:
    return FlightLog(name, pid, np.array(records, layout.FLIGHT_RECORD), num_lost)


def make_logs(num_steps: int, batch: int = 4, first_step: int = 1) -> list[FlightLog]:
    """Steps one after the other without a break. In a gap the worker prepares for all of it; the coordinator confirms
    the step before for 500 ns of the gap and 500 ns of the step, and plans the step after within the step."""
    coordinator: list[Record] = []
    worker: list[Record] = []
    for index, step in enumerate(range(first_step, first_step + num_steps)):
        begin_ns = (index + 1) * PERIOD_NS
        end_ns = begin_ns + PERIOD_NS - GAP_NS
        coordinator += [
            (step - 1, begin_ns - 500, begin_ns + 500, Part.CONFIRM, 0, batch),
            (step, begin_ns - GAP_NS, begin_ns, Part.EXPOSED, 0, 0),
            (step + 1, begin_ns + 1_000, begin_ns + 1_200, Part.SCHEDULE, 0, batch),
            (step - 1, begin_ns + 1_300, begin_ns + 1_400, Part.SEND, 0, 1),
        ]
        worker += [
            (step, begin_ns - GAP_NS, begin_ns, Part.INPUT_PREP, 0, batch),
            (step, begin_ns, end_ns - SAMPLE_NS, Part.FORWARD, 0, batch),
            (step, end_ns - SAMPLE_NS, end_ns, Part.SAMPLE, 0, batch),
        ]
    coordinator[1] = (first_step - 1, 0, GAP_NS, Part.IDLE, 0, 0)  # nothing came before the first
    return [
        make_log("frontend-0", [], pid=0),
        make_log("coordinator-0", coordinator, pid=70),
        make_log("worker-0", worker, pid=71),
    ]
