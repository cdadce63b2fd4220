"""Preempted requests' blocks in host memory, against the fake device, in whose tokens a wrong copy shows."""

import numpy as np
import pytest
from engine import Engine, Expected

from albireo.config import SchedulerConfig
from albireo.coordinator.request import Request, State
from albireo.coordinator.swap import SwapSpace
from albireo.messages import Finish, SamplingParams


def config(**overrides: object) -> SchedulerConfig:
    values = {
        "max_num_seqs": 8, "max_num_batched_tokens": 32, "max_model_len": 64, "block_size": 4, "run_ahead": 2,
        "num_swap_blocks": 40, "enable_prefix_caching": False,
    }  # fmt: skip
    return SchedulerConfig(**(values | overrides))  # type: ignore[arg-type]


def exhausted(num_blocks: int = 16, **overrides: object) -> Engine:
    """Four requests that all start and cannot all stay."""
    engine = Engine(config(**overrides), num_blocks)
    for length in (9, 10, 11, 12):
        engine.submit(list(range(length)), max_tokens=30, ignore_eos=True)
    return engine


def step(engine: Engine) -> None:
    engine.plan(), engine.execute(), engine.confirm()
    engine.check_integrity()


def run_until_swapped(engine: Engine) -> Expected:
    """Until a request has blocks in host memory; returns it."""
    while not engine.scheduler.swap.num_requests:
        step(engine)
    (request,) = engine.scheduler.swap._kept
    return engine.requests[request.request_id]


@pytest.mark.parametrize("run_ahead", [0, 1, 2, 4])
def test_swapped_requests_get_the_same_tokens_for_any_run_ahead(run_ahead: int) -> None:
    engine = exhausted(run_ahead=run_ahead)
    engine.run()
    engine.check_results()
    swap = engine.scheduler.swap
    assert swap.num_swapped_in == swap.num_swapped_out > 0
    assert engine.requests[0].request.num_admissions == 1, "the oldest is never preempted"


def test_without_swap_space_nothing_is_copied() -> None:
    engine = exhausted(num_swap_blocks=0)
    engine.run()
    engine.check_results()
    assert engine.scheduler.counters.num_preemptions > 0
    assert engine.scheduler.swap.num_swapped_out == 0


def test_a_request_whose_blocks_find_no_room_is_computed_again() -> None:
    engine = exhausted(num_swap_blocks=2)
    engine.run()
    engine.check_results()
    assert engine.scheduler.counters.num_preemptions > 0
    assert engine.scheduler.swap.num_swapped_out == 0


def test_a_request_that_comes_back_computes_only_what_lies_behind_its_last_full_block() -> None:
    engine = exhausted(run_ahead=0)
    victim = run_until_swapped(engine).request
    while victim.state is not State.RUNNING:
        step(engine)
    plan = engine._reader._slots[(engine._writer.next_step - 1) % engine._reader._ring._num_slots]
    chunks = plan.chunks[: int(plan.header["num_chunks"][0])]
    (chunk,) = chunks[chunks["slot"] == victim.slot]
    assert int(chunk["start"]) == (victim.tokens.size - 1) // 4 * 4
    copies = plan.copies[: int(plan.header["num_swap_ins"][0])]
    its_blocks = engine.scheduler.slots.blocks(victim.slot)
    assert np.isin(copies["kv_block"], its_blocks).sum() == chunk["start"] // 4


@pytest.mark.parametrize("steps_later", [0, 1, 5])
def test_an_abort_frees_the_blocks_in_host_memory(steps_later: int) -> None:
    engine = exhausted(run_ahead=0)
    victim = run_until_swapped(engine)
    for _ in range(steps_later):
        step(engine)
    assert victim.request.state is State.WAITING
    swap, others = engine.scheduler.swap, engine.scheduler.swap.num_requests - 1
    engine.abort(victim)
    assert victim.request not in swap._kept
    assert swap.num_requests == others
    assert others or not swap.pool.num_used
    engine.run()
    engine.check_results()


def test_a_sequence_that_a_late_token_ends_frees_its_blocks() -> None:
    """Its last token was in flight when it was preempted."""
    for max_tokens in range(8, 30):
        engine = Engine(config(), num_blocks=16)
        for length in (9, 10, 11, 12):
            engine.submit(list(range(length)), max_tokens=max_tokens, ignore_eos=True)
        while engine.plan() | engine.execute():
            while engine.plan() | engine.execute():
                pass
            kept = [request for request in engine.scheduler.swap._kept if request.num_in_flight]
            engine.confirm()
            if any(request.state is State.FINISHED for request in kept):
                assert engine.scheduler.swap.num_requests == len(kept) - 1
                break
        engine.run()
        engine.check_results()
        if any(request.state is State.FINISHED for request in kept):
            return
    raise AssertionError("no last token came late")


def test_the_lowest_priority_is_swapped_out() -> None:
    engine = Engine(config(policy="priority"), num_blocks=16)
    for length, priority in ((9, 5), (10, 0), (11, 1), (12, 2)):
        engine.submit(list(range(length)), max_tokens=30, ignore_eos=True, priority=priority)
    assert run_until_swapped(engine) is engine.requests[0]
    engine.run()
    engine.check_results()


@pytest.mark.parametrize("caching", [True, False])
def test_blocks_that_others_hold_stay_on_the_device_and_are_found_there(caching: bool) -> None:
    engine = Engine(config(enable_prefix_caching=caching), num_blocks=18)
    for _ in range(4):
        engine.submit(list(range(20)), max_tokens=30, ignore_eos=True, sample_group=7, frontend=0)
    victim = run_until_swapped(engine).request
    kept = engine.scheduler.swap._kept[victim]
    assert kept.first == 4, "the prompt's own blocks, but for the one that samples its first token"
    engine.run()
    engine.check_results()
    assert engine.scheduler.swap.num_swapped_in > 0


def test_what_only_others_held_and_lost_is_computed_again() -> None:
    engine = Engine(config(), num_blocks=18)
    for _ in range(4):
        engine.submit(list(range(20)), max_tokens=30, ignore_eos=True, sample_group=7, frontend=0)
    victim = run_until_swapped(engine)
    for expected in list(engine.requests.values()):
        if expected is not victim and not expected.finished:
            engine.abort(expected)
    pool = engine.scheduler.pool
    pool.release(pool.allocate(pool.num_free))  # the cache remembers nothing
    before = engine.scheduler.swap.num_swapped_in
    engine.run()
    engine.check_results()
    assert engine.scheduler.swap.num_swapped_in == before


def test_blocks_that_the_prefix_cache_still_has_are_not_copied_in() -> None:
    engine = exhausted(enable_prefix_caching=True)
    engine.run()
    engine.check_results()
    swap = engine.scheduler.swap
    assert 0 < swap.num_swapped_in < swap.num_swapped_out


def test_blocks_that_were_copied_in_can_be_found_by_others() -> None:
    engine = exhausted(enable_prefix_caching=True, run_ahead=0)
    victim = run_until_swapped(engine).request
    engine.scheduler.pool.release(engine.scheduler.pool.allocate(engine.scheduler.pool.num_free))
    while victim.state is not State.RUNNING:
        step(engine)
    found = engine.scheduler.pool.lookup(victim.hashes)
    assert found[: len(victim.hashes)] == engine.scheduler.slots.blocks(victim.slot)[: len(victim.hashes)].tolist()
    engine.run()
    engine.check_results()


def test_a_prompt_whose_tokens_are_to_be_scored_is_computed_again() -> None:
    """Scores come from hidden states, which are not kept."""
    engine = Engine(config(max_num_batched_tokens=4, max_num_seqs=2), num_blocks=12)
    engine.submit([1, 2, 3], max_tokens=40, ignore_eos=True)
    engine.submit([*range(40)], max_tokens=1, prompt_logprobs=0)
    engine.run()
    engine.check_results()
    assert engine.scheduler.counters.num_preemptions > 0
    assert engine.scheduler.swap.num_swapped_out == 0


def test_requests_are_computed_again_where_that_is_cheaper() -> None:
    engine = exhausted()
    engine.scheduler.swap.costs.prefers_swap = lambda num_blocks: False  # type: ignore[method-assign]
    engine.run()
    engine.check_results()
    assert engine.scheduler.swap.num_swapped_out == 0


def test_when_the_workers_memory_is_lost_everybody_is_computed_again() -> None:
    engine = exhausted(run_ahead=0)
    run_until_swapped(engine)
    engine.scheduler.swap.lose_all()
    engine.device._swapped[:] = -1
    assert engine.scheduler.swap.pool.num_used == 0
    engine.run()
    engine.check_results()


# -- the space alone ----------------------------------------------------------------------------------------------


def request(num_tokens: int) -> Request:
    return Request(
        frontend=0, request_id=0, sampling=SamplingParams(max_tokens=8), tokens=np.arange(num_tokens, dtype=np.int32),
        max_total_tokens=60, priority=0, cache_salt="", arrival=0,
    )  # fmt: skip


def blocks(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def test_a_copy_that_no_plan_has_yet_goes_with_its_request() -> None:
    """Its place may be another's in the same plan."""
    space = SwapSpace(config(num_swap_blocks=2))
    first, second = request(9), request(9)
    assert space.keep(first, 0, blocks(5, 6))
    space.drop(first)
    assert space.keep(second, 0, blocks(7, 8))
    assert [copies["kv_block"].tolist() for copies in space._outs.values()] == [[7, 8]]
    space.check_integrity()


def test_a_plan_s_copies_are_bounded() -> None:
    space = SwapSpace(config(num_swap_blocks=100))
    most = 2 * space._max_copies // 4
    assert space.keep(request(60), 0, np.arange(most, dtype=np.int32))
    assert space.keep(request(60), 0, np.arange(most, dtype=np.int32))
    late = request(60)
    assert not space.keep(late, 0, blocks(1)), "that one is computed again"
    assert space.can_restore(late, 0), "which takes no copies"


def test_a_request_that_stayed_shorter_than_planned_takes_what_lies_before_its_last_token() -> None:
    """A row that waited for its grammar's mask was planned on and sampled nothing."""
    space = SwapSpace(config())
    short = request(8)
    assert space.keep(short, 0, blocks(3, 4))
    assert space.restore(short, 0, blocks(1, 2)) == 1
    assert space.pool.num_used == 0


def test_finish_reasons_are_unchanged_by_swapping() -> None:
    finishes = []
    for num_swap_blocks in (0, 40):
        engine = Engine(config(num_swap_blocks=num_swap_blocks), num_blocks=14)
        for length in range(1, 16):
            engine.submit(list(range(length)), max_tokens=24, stop=(7, 8), ignore_eos=length % 3 == 0)
        engine.run()
        engine.check_results()
        finishes.append([expected.finished for expected in engine.requests.values()])
    assert finishes[0] == finishes[1]
    assert {*finishes[0]} >= {Finish.EOS, Finish.STOP_TOKEN, Finish.LENGTH}
