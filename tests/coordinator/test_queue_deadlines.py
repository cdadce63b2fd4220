"""Requests that wait for their first step, and until when."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
from coordinator_harness import SCHEDULER, Harness, outputs
from engine import Engine
from fake_device import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from albireo.coordinator.deadlines import MIN_ENTRIES, QueueDeadlines
from albireo.coordinator.grammars import NoGrammars
from albireo.coordinator.request import Request, State
from albireo.messages import (
    Abort,
    Expired,
    Failed,
    Finish,
    Grammar,
    Rejected,
    Resumed,
    SamplingParams,
    Submit,
    ToFrontend,
    Tokens,
    encode,
)

SECOND = 10**9
TIMEOUT_S = 3
ONE_AT_A_TIME = msgspec.structs.replace(SCHEDULER, max_num_seqs=1, policy="priority")


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """One request runs at a time, by priority, and others wait three seconds at most."""
    harness = Harness(str(tmp_path), scheduler=ONE_AT_A_TIME, queue_timeout_s=TIMEOUT_S)
    yield harness
    harness.close()


def expired(messages: list[ToFrontend]) -> list[int]:
    return [message.request_id for message in messages if isinstance(message, Expired)]


def with_tokens(messages: list[ToFrontend]) -> list[ToFrontend]:
    return [message for message in messages if isinstance(message, Tokens)]


def wait(harness: Harness, seconds: float) -> None:
    """The coordinator's next step is so much later."""
    harness.hear()
    harness.now_ns += round(seconds * SECOND)
    harness.coordinator.step()


def test_who_waits_too_long_is_ended_and_what_runs_does_not_notice(harness: Harness) -> None:
    harness.submit(0, 1, [1, 2, 5], max_tokens=20, ignore_eos=True)
    harness.start()
    harness.submit(1, 2, [1, 2, 6])
    wait(harness, TIMEOUT_S - 0.1)
    assert not expired(harness.received(1))
    wait(harness, 0.1)
    assert expired(harness.received(1)) == [2]
    assert not harness.stats["num_waiting"][0]
    harness.run()
    assert outputs(harness.received(0)) == {1: reference([1, 2, 5], 1, 23, (), ())}
    assert not harness.received(1)


def test_under_priorities_the_oldest_is_ended_wherever_it_stands_in_the_queue(harness: Harness) -> None:
    harness.submit(0, 1, [1, 2, 5], max_tokens=20, ignore_eos=True)
    harness.start()
    harness.submit(0, 2, [1, 2, 6], priority=9)
    wait(harness, 2)
    harness.submit(0, 3, [1, 2, 7], priority=-9)
    wait(harness, 2)
    assert expired(harness.received(0)) == [2]
    harness.run()
    assert set(outputs(with_tokens(harness.received(0)))) == {1, 3}


def test_a_request_for_which_there_is_room_at_last_is_started_and_not_ended(harness: Harness) -> None:
    harness.submit(0, 1, [1, 2, 5], max_tokens=20, ignore_eos=True)
    harness.start()
    harness.submit(0, 2, [1, 2, 6])
    harness.send(0, encode(Abort([1])))
    harness.hear()
    while harness.work():  # steps that were planned
        pass
    wait(harness, 2 * TIMEOUT_S)
    assert harness.running() == {2}


def test_without_workers_the_time_goes_on(harness: Harness) -> None:
    harness.submit(0, 1, [1, 2, 5])
    wait(harness, 0)
    harness.coordinator.halt()
    harness.submit(0, 2, [1, 2, 6])
    wait(harness, TIMEOUT_S - 1)
    assert not expired(harness.received(0))
    wait(harness, 1)
    assert expired(harness.received(0)) == [1, 2], "neither has had a token, and nobody computes"
    assert not harness.coordinator.is_watching


def test_a_death_gives_a_request_that_had_started_its_time_once_more_and_another_death_does_not(
    harness: Harness,
) -> None:
    harness.submit(0, 1, [1, 2, 5])
    wait(harness, 0)
    harness.now_ns += 10 * TIMEOUT_S * SECOND  # a long prompt
    harness.lose_workers()
    wait(harness, TIMEOUT_S - 1)
    assert not expired(harness.received(0))
    harness.resume()
    harness.lose_workers()
    wait(harness, 1)
    assert expired(harness.received(0)) == [1]


def test_what_has_given_tokens_is_never_ended_for_its_wait(harness: Harness) -> None:
    harness.submit(0, 1, [1, 2, 5], max_tokens=20, ignore_eos=True)
    harness.start()
    while not with_tokens(harness.received(0)):
        harness.coordinator.step()
        harness.work()
    harness.lose_workers()
    tokens, _ = reference([1, 2, 9], 7, 23, (), ())
    data = np.array([1, 2, 9, *tokens[:8]], np.int32).tobytes()
    params = SamplingParams(max_tokens=20, seed=7, ignore_eos=True)
    harness.send(1, encode(Submit(7, data, params, resumed=Resumed(8), arrival_ns=1)))
    wait(harness, 10 * TIMEOUT_S)
    harness.resume()
    harness.run()
    assert outputs(harness.received(1)) == {7: (tokens[8:], Finish.LENGTH)}
    assert not expired(harness.received(0))


def test_the_wait_began_with_the_first_coordinator_that_had_it(harness: Harness) -> None:
    harness.now_ns = 100 * SECOND
    harness.coordinator.halt()
    harness.submit(0, 1, [1, 2, 5], arrival_ns=98 * SECOND)
    data = np.array([1, 2, 9], np.int32).tobytes()
    started = Submit(2, data, SamplingParams(max_tokens=5), resumed=Resumed(0), arrival_ns=98 * SECOND)
    harness.send(0, encode(started))
    wait(harness, 1)
    assert expired(harness.received(0)) == [1]
    wait(harness, TIMEOUT_S - 1)
    assert expired(harness.received(0)) == [2], "it had begun, and so waits anew"


def test_a_request_that_is_preempted_before_its_first_token_is_not_watched_again() -> None:
    engine, deadlines = Engine(SCHEDULER, 100), QueueDeadlines(TIMEOUT_S)
    request = engine.submit([1] * 60, 2, ignore_eos=True).request
    deadlines.watch(request, 0)
    engine.plan()
    engine.scheduler._preemptor.preempt_last(engine.scheduler.pool, 1)
    assert request.state is State.WAITING and not request.has_output
    assert not deadlines.take_expired(100 * SECOND)


class NeverCompiled(NoGrammars):
    refusal: str | None = None

    def __init__(self) -> None:
        self.forgotten: list[Request] = []

    def submit(self, request: Request, grammar: Grammar) -> None:
        request.grammar_handle = 1

    def forget(self, requests: Iterable[Request]) -> None:
        self.forgotten += requests


def test_a_request_whose_grammar_is_not_compiled_in_time_is_ended_and_its_grammar_forgotten(harness: Harness) -> None:
    grammars = harness.coordinator._grammars = NeverCompiled()
    harness.submit(0, 1, [1, 2, 5], grammar=Grammar("regex", "a", "structured_outputs"))
    wait(harness, TIMEOUT_S)
    assert expired(harness.received(0)) == [1]
    assert [request.request_id for request in grammars.forgotten] == [1]


def test_ends_for_the_wait_are_logged_once_in_ten_seconds(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    harness.coordinator.halt()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "albireo.coordinator.step_log"):
        for request_id in range(4):
            harness.submit(0, request_id, [1, 2])
            wait(harness, TIMEOUT_S)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "request 0 of frontend 0 has waited 3 s for its first step and ends with 503"
    ]
    caplog.clear()
    harness.submit(0, 5, [1, 2])
    wait(harness, TIMEOUT_S)
    assert "before it: 3 requests" in caplog.text


def new_request(number: int) -> Request:
    return Request(
        frontend=0, request_id=number, sampling=SamplingParams(max_tokens=1), tokens=np.array([1], np.int32),
        max_total_tokens=2, priority=0, cache_salt="", arrival=number,
    )  # fmt: skip


def test_behind_one_that_waits_long_those_that_came_and_went_are_not_kept() -> None:
    deadlines = QueueDeadlines(10**6)
    for number in range(100 * MIN_ENTRIES):
        request = new_request(number)
        deadlines.watch(request, number)
        if number:
            request.state = State.FINISHED
        assert not deadlines.take_expired(number)
    assert len(deadlines) <= MIN_ENTRIES + 1


@dataclass
class Known:
    """A live request, as a client sees it."""

    frontend: int
    prompt: list[int]
    max_tokens: int
    since_ns: int
    """When its wait began."""
    num_admissions: int = 0
    """That came to nothing, since workers died."""
    received: list[int] = field(default_factory=list)


class World:
    """A coordinator, and what must be so of each request. A second passes only when an operation says so."""

    def __init__(self, run_dir: str, policy: str) -> None:
        scheduler = msgspec.structs.replace(SCHEDULER, max_num_seqs=3, policy=policy)
        self.harness = Harness(run_dir, scheduler=scheduler, queue_timeout_s=TIMEOUT_S)
        self.harness.now_ns = 100 * SECOND
        for frontend in range(2):
            self.harness.send(frontend, encode(Abort([])))
        self.harness.hear()
        self.live: dict[int, Known] = {}
        self.num_submitted = 0
        self.is_halted = False

    def submit(self, frontend: int, length: int, max_tokens: int, priority: int, age_s: int) -> None:
        number = self.num_submitted = self.num_submitted + 1
        prompt = [5 + number % 40] * length
        since_ns = self.harness.now_ns - age_s * SECOND
        self.live[number] = Known(frontend, prompt, max_tokens, since_ns)
        self.harness.submit(
            frontend, number, prompt, max_tokens, priority=priority, arrival_ns=since_ns, ignore_eos=True
        )

    def abort(self, number: int) -> None:
        known = self.live.pop(number % (self.num_submitted + 1), None)
        if known is not None:
            self.harness.send(known.frontend, encode(Abort([number % (self.num_submitted + 1)])))

    def die(self) -> None:
        if self.is_halted:
            return
        self.harness.lose_workers()
        self.is_halted = True
        self.take_answers()
        for number, known in self.live.items():
            if self.has_started(number) and not known.received:
                known.since_ns, known.num_admissions = self.harness.now_ns, self.num_admissions(number)

    def come_back(self) -> None:
        if self.is_halted:
            self.harness.resume()
            self.is_halted = False

    def pass_time(self, seconds: int) -> None:
        self.harness.hear()
        self.harness.now_ns += seconds * SECOND
        started = {number for number in self.live if self.has_started(number)}
        self.harness.coordinator.step()
        self.take_answers(started)
        for number, known in self.live.items():
            if not self.has_started(number) and not known.received:
                assert known.since_ns + TIMEOUT_S * SECOND > self.harness.now_ns, "it should have been ended"

    def num_admissions(self, number: int) -> int:
        request = self.harness.coordinator._requests.get((self.live[number].frontend, number))
        return 0 if request is None else request.num_admissions

    def has_started(self, number: int) -> bool:
        """Since the last death that took what it had."""
        return self.num_admissions(number) > self.live[number].num_admissions

    def take_answers(self, started: set[int] | None = None) -> None:
        for frontend in range(2):
            for message in self.harness.received(frontend):
                match message:
                    case Tokens():
                        self.take_tokens(message)
                    case Expired():
                        known = self.live.pop(message.request_id)
                        assert not known.received and message.request_id not in (started or ())
                        assert known.since_ns + TIMEOUT_S * SECOND <= self.harness.now_ns
                    case Rejected() | Failed():
                        self.live.pop(message.request_id)  # it may be what kills the workers

    def take_tokens(self, message: Tokens) -> None:
        for number, (tokens, finish) in outputs([message]).items():
            known = self.live.get(number)
            if known is None:
                continue  # sent before the coordinator heard of the abort
            known.received += tokens
            if finish is not Finish.NONE:
                total = len(known.prompt) + known.max_tokens
                assert known.received == reference(known.prompt, number, total, (), ())[0]
                del self.live[number]


OPERATION = st.one_of(
    st.tuples(st.just(World.submit), st.tuples(
        st.integers(0, 1), st.integers(1, 40), st.integers(1, 12), st.integers(-1, 1), st.integers(0, 2))),
    st.tuples(st.just(World.pass_time), st.tuples(st.integers(0, 2))),
    st.tuples(st.just(lambda world: world.harness.work()), st.just(())),
    st.tuples(st.just(World.abort), st.tuples(st.integers(1, 20))),
    st.tuples(st.just(World.die), st.just(())),
    st.tuples(st.just(World.come_back), st.just(())),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["fcfs", "priority"]), st.lists(OPERATION, max_size=50))
def test_whatever_happens_a_wait_ends_in_time_and_nothing_else_ends_for_it(policy: str, operations: list) -> None:  # type: ignore[type-arg]
    with tempfile.TemporaryDirectory() as run_dir:
        world = World(run_dir, policy)
        try:
            for operation, arguments in operations:
                operation(world, *arguments)
            world.come_back()
            world.harness.run()
            world.take_answers()
            assert not world.live
            scheduler = world.harness.coordinator._scheduler
            assert scheduler.pool.num_used == 0 and not scheduler.has_work
            assert not world.harness.coordinator.is_watching
        finally:
            world.harness.close()
