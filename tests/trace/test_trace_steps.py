"""Which steps are found in records, and which are chosen."""

from dataclasses import replace

import numpy as np
import pytest
from flight_logs import PERIOD_NS, make_log, make_logs

from albireo.shm.flight import Part
from albireo.trace.source import Recording, TraceError
from albireo.trace.steps import UNKNOWN_NS, find_steps
from albireo.trace.window import between, middle, of_steps, recorded_steps


def test_a_step_is_the_device_s_work_and_the_gap_before() -> None:
    steps = find_steps(make_logs(3))
    assert steps.number.tolist() == [1, 2, 3]
    assert (steps.end_ns - steps.begin_ns).tolist() == [9_000] * 3
    assert steps.gap_ns.tolist() == [UNKNOWN_NS, 1_000, 1_000]
    assert steps.timed().period_ns.tolist() == [PERIOD_NS] * 2
    assert steps.num_tokens.tolist() == [4, 4, 4]
    assert steps.num_decodes.tolist() == [-1, 4, 4], "the first step's plan is not in the record"


def test_decode_steps_at_full_batch_follow_on_others_of_the_kind() -> None:
    logs = make_logs(6)
    worker = logs[2].records.copy()
    worker["num_rows"][worker["step"] == 4] = 20  # a prompt's chunk came into this step
    logs[2] = replace(logs[2], records=worker)
    assert find_steps(logs).decoding(4).number.tolist() == [3, 6]
    assert len(find_steps(logs).decoding(5)) == 0


def test_steps_that_a_process_has_forgotten_are_left_out() -> None:
    frontend, coordinator, worker = make_logs(5)
    late = coordinator.records[coordinator.records["begin_ns"] > 2 * PERIOD_NS]
    logs = [frontend, make_log("coordinator-0", late.tolist(), num_lost=9), worker]
    assert find_steps(logs).number.tolist() == [3, 4, 5]


def test_records_without_a_worker_or_coordinator_have_no_steps() -> None:
    frontend, coordinator, worker = make_logs(5)
    assert len(find_steps([frontend, coordinator])) == 0
    assert len(find_steps([worker]).timed()) == 0
    assert len(find_steps([])) == 0


def test_a_range_of_steps_includes_both_ends() -> None:
    steps = find_steps(make_logs(9))
    assert between(steps, 3, 5).number.tolist() == [3, 4, 5]
    assert between(steps, 8, 50).number.tolist() == [8, 9]
    with pytest.raises(TraceError, match="no step from 20 to 30 is in the record, which has steps 1 to 9"):
        between(steps, 20, 30)


def test_the_middle_is_taken_where_there_is_no_break() -> None:
    steps = find_steps(make_logs(9))
    assert middle(steps, 3).number.tolist() == [4, 5, 6]
    assert middle(steps, 20).number.tolist() == list(range(1, 10))
    holes = steps.take(np.array([0, 1, 2, 3, 5, 7]))
    assert middle(holes, 3).number.tolist() == [2, 3, 4]
    assert len(middle(holes, 5)) == 5, "with a break, where there is no other way"


def test_the_records_of_steps_reach_from_the_first_plan_to_the_last_message() -> None:
    logs = make_logs(9)
    chosen = of_steps(logs, between(find_steps(logs), 4, 5))
    times = np.concatenate([log.records["begin_ns"] for log in chosen])
    assert times.min() == 3 * PERIOD_NS, "FORWARD of step 3, in which step 4 is planned"
    labels = {(int(r["step"]), int(r["part"])) for log in chosen for r in log.records}
    assert {(4, Part.SCHEDULE), (4, Part.FORWARD), (5, Part.SAMPLE), (5, Part.CONFIRM), (5, Part.SEND)} <= labels
    assert (9, Part.FORWARD) not in labels


def test_an_engine_without_a_step_says_so() -> None:
    with pytest.raises(TraceError, match="no step has been recorded yet"):
        recorded_steps(Recording([make_log("worker-0", [])]))
    with pytest.raises(TraceError, match="no step ran in this time"):
        recorded_steps(Recording(make_logs(3), begin_ns=10**9))
