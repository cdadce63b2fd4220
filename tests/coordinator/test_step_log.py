"""Slow steps and preemptions: when a line is written, and what it says."""

import pytest

from albireo.coordinator.step_log import INTERVAL_NS, Preemption, StepLog

MS = 1_000_000


@pytest.fixture
def step_log() -> StepLog:
    """After ten decode steps of 20 ms."""
    log = StepLog()
    for step in range(10):
        run(log, step, 20)
    return log


def run(
    log: StepLog, step: int, device_ms: int, exposed_ms: int = 0, num_chunk_tokens: int = 0, now_ns: int = 0
) -> None:
    log.planned(12, num_chunk_tokens)
    log.confirmed(step, device_ms * MS, exposed_ms * MS, now_ns)


def test_a_slow_step_is_told_with_where_its_time_went(step_log: StepLog, caplog: pytest.LogCaptureFixture) -> None:
    run(step_log, 10, 20, exposed_ms=300)
    assert caplog.messages == [
        "step 10 took 320 ms, most of it before its plan was there; as a rule 20 ms: rows 12, prompt tokens 0, "
        "exposed 300 ms"
    ]
    assert caplog.records[0].albireo_fields["num_rows"] == 12  # type: ignore[attr-defined]
    caplog.clear()
    run(step_log, 11, 400, now_ns=INTERVAL_NS)
    assert "most of it on the device" in caplog.text


def test_a_step_of_another_kind_or_a_short_one_is_not_slow(step_log: StepLog, caplog: pytest.LogCaptureFixture) -> None:
    run(step_log, 10, 400, num_chunk_tokens=512)
    run(step_log, 11, 99)
    assert not caplog.messages


def test_slow_steps_in_a_row_are_one_line_and_a_count(step_log: StepLog, caplog: pytest.LogCaptureFixture) -> None:
    for step in range(10, 14):
        run(step_log, step, 300)
    assert len(caplog.messages) == 1
    run(step_log, 14, 300, now_ns=INTERVAL_NS)
    assert caplog.messages[1].endswith("; slow steps before it that were not logged: 3")


def test_steps_that_were_lost_are_not_taken_for_later_ones(step_log: StepLog, caplog: pytest.LogCaptureFixture) -> None:
    step_log.planned(500, 0)
    step_log.forget()
    run(step_log, 10, 300)
    assert "rows 12" in caplog.text


def test_preemptions_say_why_and_come_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    log = StepLog()
    preemption = Preemption(
        frontend=0, request_id=7, num_tokens=512, is_kept=False, num_needed_blocks=3, num_free_blocks=1, num_blocks=64
    )
    log.preempted([preemption], 0)
    log.preempted([preemption, preemption], 1)
    log.preempted([], INTERVAL_NS)
    first, second = caplog.messages
    assert first == (
        "request 7 of frontend 0 is preempted, the KV cache is full: rows that need another block 3, free blocks 1 of "
        "64; up to 512 tokens are computed again"
    )
    assert second == first + "; before it: 1 requests, 512 tokens"
