"""How often what dies is started again."""

import pytest

from albireo.supervisor.restarts import (
    FIRST_DELAY_S,
    MAX_FAILED_STARTS,
    MAX_PER_MINUTE,
    GrammarRestarts,
    Restarts,
)


def test_what_was_ready_is_replaced_at_once_until_it_dies_too_often() -> None:
    restarts = Restarts()
    assert [restarts.delay_s("workers", True, 100 + number) for number in range(MAX_PER_MINUTE)] == [
        0.0
    ] * MAX_PER_MINUTE
    assert restarts.delay_s("workers", True, 130) is None


def test_deaths_that_are_a_minute_old_no_longer_count() -> None:
    restarts = Restarts()
    for number in range(5 * MAX_PER_MINUTE):
        assert restarts.delay_s("workers", True, number * 61 / MAX_PER_MINUTE) == 0.0


def test_starts_that_fail_wait_longer_each_time_and_then_no_more() -> None:
    restarts = Restarts()
    delays = [restarts.delay_s("workers", False, number) for number in range(MAX_FAILED_STARTS)]
    assert delays == [FIRST_DELAY_S * 2**number for number in range(MAX_FAILED_STARTS - 1)] + [None]


def test_a_start_that_succeeds_forgives_those_that_failed() -> None:
    restarts = Restarts()
    for _ in range(10):
        assert restarts.delay_s("workers", False, 0) == FIRST_DELAY_S
        restarts.started("workers")


def test_a_grammar_process_that_dies_too_often_waits_until_the_minute_is_over() -> None:
    restarts = GrammarRestarts(3)
    assert [restarts.delay_s(second) for second in (0, 10, 20)] == [0, 0, 0]
    assert restarts.delay_s(30) == pytest.approx(30)
    assert restarts.delay_s(95) == 0


def test_a_start_that_succeeds_elsewhere_forgives_nothing() -> None:
    restarts = Restarts()
    assert restarts.delay_s("coordinator-0", False, 0) == FIRST_DELAY_S
    restarts.started("grammar-0")
    assert restarts.delay_s("coordinator-0", False, 1) == 2 * FIRST_DELAY_S
