"""The account of made-up steps whose every time is known."""

import numpy as np
import pytest
from flight_logs import GAP_NS, PERIOD_NS, SAMPLE_NS, make_log, make_logs

from albireo.shm.flight import Part
from albireo.trace.overlap import Overlap, amdahl_bound, measure, one_rank_fraction
from albireo.trace.steps import find_steps


def account(num_steps: int = 11) -> Overlap:
    logs = make_logs(num_steps)
    return measure(logs, find_steps(logs).timed())


def test_period_gap_and_device_time_are_those_of_the_steps() -> None:
    overlap = account()
    assert overlap.num_steps == 10, "the first has no gap before it"
    assert (overlap.period.mean_us, overlap.period.p999_us, overlap.gap.p50_us, overlap.gap.max_us) == (10, 10, 1, 1)
    assert overlap.device.mean_us == 9
    assert overlap.gap_share == GAP_NS / PERIOD_NS


def test_each_part_is_hidden_or_exposed_by_where_it_lies() -> None:
    parts = {(part.process, part.part): part for part in account().parts}
    confirm = parts["coordinator-0", "CONFIRM"]
    assert (confirm.hidden_us, confirm.exposed_us, confirm.per_step_us, confirm.share) == (0.5, 0.5, 1.0, 0.1)
    assert (confirm.p50_us, confirm.p99_us) == (1, 1)
    prepare = parts["worker-0", "INPUT_PREP"]
    assert (prepare.hidden_us, prepare.exposed_us) == (0, 1)
    schedule = parts["coordinator-0", "SCHEDULE"]
    assert (schedule.hidden_us, schedule.exposed_us) == (0.2, 0)
    assert parts["worker-0", "FORWARD"].share == 0.7
    assert not {"EXPOSED", "IDLE"} & {name for _, name in parts}


def test_the_gap_in_which_nobody_was_busy_is_told() -> None:
    frontend, coordinator, worker = make_logs(11)
    assert account().nobody_us == 0
    idle_worker = make_log("worker-0", worker.records[worker.records["part"] != Part.INPUT_PREP].tolist())
    logs = [frontend, coordinator, idle_worker]
    assert measure(logs, find_steps(logs).timed()).nobody_us == 0.5, "CONFIRM lies in the other half"


def test_what_does_not_shrink_is_the_gap_and_with_repeated_sampling_that_too() -> None:
    limits = account().non_scalable
    assert limits.fraction == GAP_NS / PERIOD_NS
    assert limits.fraction_sampling_repeated == (GAP_NS + SAMPLE_NS) / PERIOD_NS
    assert limits.speed_up_bounds == {ranks: amdahl_bound(0.1, ranks) for ranks in (2, 4, 8)}


def test_collectives_of_several_ranks_do_not_shrink_and_the_rest_is_theirs_to_divide() -> None:
    frontend, coordinator, worker = make_logs(11)
    # a collective of a microsecond in each FORWARD, and one that reaches over half of each SAMPLE
    forward = worker.records[worker.records["part"] == Part.FORWARD]
    sample = worker.records[worker.records["part"] == Part.SAMPLE]
    extra = [(int(r["step"]), int(r["begin_ns"]), int(r["begin_ns"]) + 1000, Part.COLLECTIVE, 0, 4) for r in forward]
    extra += [(int(r["step"]), int(r["begin_ns"]), int(r["begin_ns"]) + 1000, Part.COLLECTIVE, 0, 4) for r in sample]
    ranks = [make_log("worker-0", worker.records.tolist() + extra), make_log("worker-1", [])]
    logs = [frontend, coordinator, *ranks]
    overlap = measure(logs, find_steps(logs).timed())
    assert overlap.num_ranks == 2
    assert overlap.non_scalable.fraction == 3 / (3 + 2 * 7)
    assert overlap.non_scalable.fraction_sampling_repeated == 4 / (4 + 2 * 6)


def test_amdahl_s_law() -> None:
    assert amdahl_bound(0.0, 8) == 8
    assert amdahl_bound(1.0, 8) == 1
    assert amdahl_bound(0.5, 2) == pytest.approx(4 / 3)
    assert one_rank_fraction(3, 10, 1) == 0.3


def test_no_step_with_a_known_period_is_an_error() -> None:
    logs = make_logs(1)
    with pytest.raises(ValueError, match="no step whose period is known"):
        measure(logs, find_steps(logs).timed())


def test_hidden_and_exposed_add_up_to_all_time_of_a_part_inside_the_steps() -> None:
    rng = np.random.default_rng(0)
    logs = make_logs(20)
    begins = rng.integers(2 * PERIOD_NS, 20 * PERIOD_NS, 200)
    lengths = rng.integers(0, 500, 200)
    records = [(0, int(b), int(b + n), Part.SEND, 0, 1) for b, n in zip(begins, lengths, strict=True)]
    logs[0] = make_log("frontend-0", records)
    overlap = measure(logs, find_steps(logs).timed())
    send = next(part for part in overlap.parts if part.process == "frontend-0")
    assert send.per_step_us * overlap.num_steps == pytest.approx(lengths.sum() / 1e3)
