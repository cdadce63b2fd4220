"""Workers, frontends and coordinators that die: what becomes of the requests."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from coordinator_harness import SCHEDULER, Harness, outputs
from engine import Engine
from fake_device import reference

from albireo.config import SchedulerConfig, SchedulingPolicy
from albireo.coordinator.request import State
from albireo.messages import Crashed, Failed, Rejected, Resumed, SamplingParams, Submit, Tokens, encode


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(str(tmp_path))
    yield harness
    harness.close()


def test_when_the_workers_die_every_request_goes_on_where_it_was(harness: Harness) -> None:
    for request_id in range(3):
        harness.submit(0, request_id, [1, 2, 5 + request_id], max_tokens=30, ignore_eos=True)
    harness.start(3)
    for _ in range(8):
        harness.work()
        harness.coordinator.step()  # and steps are in flight
    harness.lose_workers()
    harness.coordinator.step()
    assert not harness.work(), "a step was planned without workers"
    harness.resume()
    harness.run()
    expected = {number: reference([1, 2, 5 + number], number, 33, (), ()) for number in range(3)}
    assert outputs(harness.received(0)) == expected


def test_a_request_that_no_longer_fits_ends_with_an_error_and_others_go_on(harness: Harness) -> None:
    harness.submit(0, 1, [1] * 40, max_tokens=20, ignore_eos=True)
    harness.submit(0, 2, [1, 2, 3], max_tokens=4, ignore_eos=True)
    harness.start(2)
    harness.lose_workers()
    harness.resume(5)
    harness.run()
    failed, *rest = sorted(harness.received(0), key=lambda message: not isinstance(message, Failed))
    assert isinstance(failed, Failed) and failed.request_id == 1 and "KV cache" in failed.message
    assert outputs(rest) == {2: reference([1, 2, 3], 2, 7, (), ())}


def test_what_kills_the_workers_twice_is_ended_and_what_ran_beside_it_is_not(harness: Harness) -> None:
    for request_id in range(4):
        harness.submit(0, request_id, [1, 2, 5 + request_id], max_tokens=20, ignore_eos=True)
    harness.start(4)
    for _ in range(2):
        harness.coordinator.step()
        while 2 not in harness.running():  # it waits until those before it have got on
            assert harness.work()
            harness.coordinator.step()
        harness.lose_workers()
        harness.resume()
    harness.run()
    messages = harness.received(0)
    (failed,) = [message for message in messages if isinstance(message, Failed)]
    assert failed.request_id == 2 and "died" in failed.message
    finished = outputs([message for message in messages if isinstance(message, Tokens)])
    for request_id in (0, 1, 3):
        assert finished[request_id] == reference([1, 2, 5 + request_id], request_id, 23, (), ())


def test_what_killed_the_workers_of_another_coordinator_is_ended_when_it_kills_again(harness: Harness) -> None:
    harness.submit(0, 1, [1, 2, 5], max_tokens=20, ignore_eos=True)
    harness.submit(1, 2, [1, 2, 6], max_tokens=20, ignore_eos=True)
    harness.start(2)
    harness.lose_workers()
    for frontend, request_id in enumerate((1, 2)):
        told = [message for message in harness.received(frontend) if isinstance(message, Crashed)]
        assert told == [Crashed({request_id: 1})]
    harness.resume()
    harness.run()
    # and as another one hears of them
    harness.submit(0, 3, [1, 2, 5], max_tokens=20, ignore_eos=True, num_crashes=1)
    harness.hear()
    harness.submit(1, 4, [1, 2, 6], max_tokens=20, ignore_eos=True, num_crashes=1)
    harness.hear()
    assert harness.running() == {3}, "its death would be laid to both"
    harness.lose_workers()
    (failed,) = [message for message in harness.received(0) if isinstance(message, Failed)]
    assert failed.request_id == 3 and "died" in failed.message
    harness.resume()
    harness.run()
    assert outputs(harness.received(1))[4] == reference([1, 2, 6], 4, 23, (), ())


def test_nobody_is_admitted_beside_a_suspect_that_has_not_got_on(harness: Harness) -> None:
    harness.submit(0, 1, [1, 2, 5], max_tokens=20, ignore_eos=True)
    harness.start()
    harness.lose_workers()
    harness.resume()
    harness.submit(0, 2, [1, 2, 6], max_tokens=20, ignore_eos=True)
    harness.coordinator.step()
    assert harness.running() == {1}, "should the newcomer kill them, its death would be laid to the suspect"
    harness.run()
    assert outputs(harness.received(0)) == {n: reference([1, 2, 4 + n], n, 23, (), ()) for n in (1, 2)}


@pytest.fixture
def engine() -> Engine:
    """Two streams, one of a giant prompt, with a step in flight."""
    config = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=16, max_model_len=128, block_size=4, run_ahead=1)
    engine = Engine(config, 100)
    for length in (60, 3):
        engine.submit(list(range(length)), 20, ignore_eos=True)
    for _ in range(8):
        engine.plan(), engine.execute(), engine.confirm()
    engine.plan()
    assert all(engine.requests[index].received for index in range(2))
    return engine


def test_a_suspect_waits_until_those_that_run_have_got_on() -> None:
    config = SchedulerConfig(
        max_num_seqs=4, max_num_batched_tokens=16, max_model_len=64, block_size=4, run_ahead=1, policy="priority"
    )
    engine = Engine(config, 100)
    suspect = engine.submit([1, 2, 3], 20, ignore_eos=True).request
    engine.plan()
    engine.lose_devices()
    newcomer = engine.submit([1, 2, 4], 20, ignore_eos=True, priority=-1)
    engine.plan()
    running = engine.scheduler.slots.running
    assert running() == [newcomer.request], "should it kill the workers, its death would be laid to the suspect"
    engine.execute(), engine.confirm(), engine.plan()
    assert suspect in running()
    engine.run()
    engine.check_results()


def test_giant_suspects_are_tried_last(engine: Engine) -> None:
    engine.lose_devices()
    giant, short = (engine.requests[index] for index in range(2))
    so_far = len(short.received)
    for _ in range(3):
        engine.plan(), engine.execute(), engine.confirm()
    assert len(short.received) > so_far, "it waits for a prompt of several steps"
    assert giant.request.state is State.RUNNING
    engine.run()
    engine.check_results()


def test_suspects_are_all_back_after_a_step_each() -> None:
    config = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=64, block_size=4, run_ahead=2)
    engine = Engine(config, 200)
    for _ in range(8):
        engine.submit([1, 2, 3], 40, ignore_eos=True)
    for _ in range(10):
        engine.plan(), engine.execute(), engine.confirm()
    engine.plan()
    assert len(engine.lose_devices()) == 8
    num_steps = 0
    while engine.scheduler.slots.num_running < 8:
        num_steps += engine.plan() | engine.plan() | engine.plan()
        engine.execute(), engine.confirm()
    assert num_steps == 8
    engine.run()
    engine.check_results()


def test_a_request_that_was_preempted_with_its_step_in_flight_is_a_suspect_too() -> None:
    config = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=32, max_model_len=40, block_size=4, run_ahead=2)
    engine = Engine(config, 10)
    for _ in range(2):
        engine.submit(list(range(13)), 20, ignore_eos=True)
    while not engine.scheduler.counters.num_preemptions:
        engine.plan()
        if engine.scheduler.num_in_flight == 3:
            engine.execute()
            engine.confirm()
    newest = engine.requests[1].request
    assert newest.num_in_flight, "it was to have tokens on their way"
    assert newest in engine.lose_devices()
    engine.run()
    engine.check_results()


def test_a_dead_frontend_s_requests_are_aborted_and_its_last_words_are_not_heard(harness: Harness) -> None:
    harness.submit(0, 1, [1, 2, 3], max_tokens=40, ignore_eos=True)
    harness.submit(1, 1, [1, 2, 3], max_tokens=10, ignore_eos=True)
    harness.start(2)
    harness.coordinator.frontend_down("frontend-0")
    harness.submit(0, 2, [1, 2, 3], max_tokens=40, ignore_eos=True)
    harness.run()
    assert harness.stats["finished_abort"][0] == 1
    assert not harness.stats["num_running"][0] and not harness.stats["num_waiting"][0]
    assert outputs(harness.received(1)) == {1: reference([1, 2, 3], 1, 13, (), ())}


def test_a_request_goes_on_with_another_coordinator_after_the_tokens_that_it_has(harness: Harness) -> None:
    tokens, finish = reference([1, 2, 3], 7, 23, (), ())
    data = np.array([1, 2, 3, *tokens[:8]], np.int32).tobytes()
    params = SamplingParams(max_tokens=20, seed=7, ignore_eos=True)
    harness.send(0, encode(Submit(7, data, params, resumed=Resumed(8))))
    harness.run()
    assert outputs(harness.received(0)) == {7: (tokens[8:], finish)}


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_another_coordinator_takes_requests_in_the_order_in_which_they_came_to_the_first(
    tmp_path: Path, policy: SchedulingPolicy
) -> None:
    scheduler = msgspec.structs.replace(SCHEDULER, max_num_seqs=1, policy=policy)
    harness = Harness(str(tmp_path), scheduler=scheduler)
    harness.coordinator.halt()  # so that it hears all of them before it plans
    for frontend, numbers in enumerate(((2, 4, 5), (1, 3))):
        for number in numbers:
            harness.submit(frontend, number, [1, 2, 5], 2, arrival_ns=10 * number)
    harness.submit(1, 6, [1, 2, 5], 2)  # a new one
    harness.now_ns = 1000
    harness.hear()
    harness.resume()
    order: list[int] = []
    while len(order) < 6:
        harness.coordinator.step()
        order += sorted(harness.running() - set(order))
        harness.work()
    assert order == [1, 2, 3, 4, 5, 6]
    harness.close()


def test_what_claims_to_go_on_without_a_prompt_is_rejected(harness: Harness) -> None:
    data = np.array([1, 2, 3], np.int32).tobytes()
    harness.send(0, encode(Submit(7, data, SamplingParams(max_tokens=20, seed=7), resumed=Resumed(3))))
    harness.run()
    (rejected,) = harness.received(0)
    assert isinstance(rejected, Rejected) and rejected.field == "prompt"
