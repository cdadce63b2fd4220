import pytest
from engine import Engine

from albireo.config import SchedulerConfig
from albireo.messages import Finish


def config(**overrides: object) -> SchedulerConfig:
    values = {"max_num_seqs": 8, "max_num_batched_tokens": 32, "max_model_len": 64, "block_size": 4, "run_ahead": 2}
    return SchedulerConfig(**(values | overrides))  # type: ignore[arg-type]


@pytest.mark.parametrize("run_ahead", [0, 1, 2, 4])
def test_requests_that_end_in_every_way_get_the_same_tokens_for_any_run_ahead(run_ahead: int) -> None:
    engine = Engine(config(run_ahead=run_ahead), num_blocks=100)
    for length in range(1, 25):
        engine.submit(list(range(length)), max_tokens=12, stop=(7, 8), ignore_eos=length % 3 == 0)
    engine.run()
    engine.check_results()
    assert {expected.finish for expected in engine.requests.values()} >= {Finish.EOS, Finish.STOP_TOKEN, Finish.LENGTH}


def test_a_step_is_planned_ahead_only_as_far_as_run_ahead_says() -> None:
    for run_ahead in (0, 1, 3):
        engine = Engine(config(run_ahead=run_ahead), num_blocks=100)
        engine.submit([1, 2, 3], max_tokens=30, ignore_eos=True)
        while engine.plan():
            pass
        assert engine.scheduler.num_in_flight == run_ahead + 1


def test_a_steady_decode_step_ships_no_rows() -> None:
    engine = Engine(config(), num_blocks=100)
    for _ in range(5):
        engine.submit([1, 2, 3, 5], max_tokens=20, ignore_eos=True)
    changed = []
    while engine.plan():
        plan = engine._reader.poll()
        assert plan is not None
        changed.append(bool(plan.header["rows_changed"][0]))
        engine._executed.append(engine.device.execute(plan))
        engine._reader.consume()
        engine.confirm()
    assert changed[0] is True, "what the devices remember may be another coordinator's"
    assert changed[1] is True
    assert not any(changed[2:-1])
    engine.check_results()


def test_decodes_go_before_prompts_and_both_stay_under_the_token_budget() -> None:
    engine = Engine(config(max_num_batched_tokens=8, run_ahead=0), num_blocks=100)
    engine.submit([1, 2, 3], max_tokens=20, ignore_eos=True)
    engine.plan(), engine.execute(), engine.confirm()
    engine.submit(list(range(20)), max_tokens=4)
    engine.plan()
    plan = engine._reader._slots[2 % engine._reader._ring._num_slots]
    assert plan.header["num_rows"][0] == 1
    assert plan.chunks["num_tokens"][0] == 7
    engine.run()
    engine.check_results()


def test_when_blocks_run_out_the_newest_request_is_preempted_and_loses_nothing() -> None:
    engine = Engine(config(enable_prefix_caching=False), num_blocks=16)
    for length in (9, 10, 11, 12):
        engine.submit(list(range(length)), max_tokens=30, ignore_eos=True)
    engine.run()
    engine.check_results()
    assert engine.scheduler.counters.num_preemptions > 0
    assert engine.requests[0].request.num_admissions == 1, "the oldest is never preempted"
    preemptions = engine.scheduler.take_preemptions()
    assert len(preemptions) == engine.scheduler.counters.num_preemptions
    assert all(each.num_needed_blocks > each.num_free_blocks for each in preemptions)
    assert engine.scheduler.take_preemptions() == []


def test_preempted_requests_do_not_count_twice_in_the_prompt_totals() -> None:
    engine = Engine(config(), num_blocks=16)
    for length in (9, 10, 11, 12):
        engine.submit(list(range(length)), max_tokens=30, ignore_eos=True)
    engine.run()
    counters = engine.scheduler.counters
    assert counters.prompt_tokens == counters.prefix_cache_queries == 9 + 10 + 11 + 12
    assert counters.generation_tokens == 4 * 30


def test_requests_that_arrive_together_share_the_blocks_of_their_common_prefix() -> None:
    engine = Engine(config(max_num_batched_tokens=64), num_blocks=100)
    common = list(range(16))
    engine.submit([*common, 1], max_tokens=3)
    engine.submit([*common, 2], max_tokens=3)
    engine.plan()
    assert engine.scheduler.counters.prefix_cache_hits == 16
    assert engine.scheduler.pool.num_used == 4 + 1 + 1
    engine.check_integrity()
    engine.run()
    engine.check_results()


@pytest.mark.parametrize("caching", [True, False])
def test_samples_of_one_prompt_share_its_blocks_with_or_without_a_prefix_cache(caching: bool) -> None:
    engine = Engine(config(max_num_batched_tokens=64, enable_prefix_caching=caching), num_blocks=100)
    for _ in range(3):
        engine.submit(list(range(18)), max_tokens=3, sample_group=7, frontend=0)
    engine.submit(list(range(18)), max_tokens=3, sample_group=9, frontend=0)
    engine.plan()
    shared = 4
    assert engine.scheduler.pool.num_used == (shared + 4 if caching else shared + 3 + shared + 1)
    engine.check_integrity()
    engine.abort(engine.requests[0])
    engine.check_integrity()
    engine.run()
    engine.check_results()


def test_a_row_whose_mask_is_late_is_planned_again_and_gives_the_same_tokens() -> None:
    for run_ahead in (0, 2, 4):
        engine = Engine(config(run_ahead=run_ahead, max_num_seqs=2), num_blocks=100)
        engine.device.lateness = 2
        for length in (1, 5, 9):
            engine.submit(list(range(length)), max_tokens=12, has_grammar=True, ignore_eos=True)
            engine.submit(list(range(length)), max_tokens=1, has_grammar=True)
            engine.submit(list(range(length)), max_tokens=12)
        engine.run()
        assert engine.device.num_waited
        engine.check_integrity()
        engine.check_results()


def test_a_prompt_that_is_cached_whole_still_computes_its_last_token() -> None:
    engine = Engine(config(), num_blocks=100)
    prompt = list(range(16))
    engine.submit(prompt, max_tokens=2, ignore_eos=True)
    engine.run()
    engine.submit(prompt, max_tokens=2, ignore_eos=True)
    engine.run()
    engine.check_results()
    assert engine.scheduler.counters.prefix_cache_hits == 12


def test_a_follow_up_finds_the_blocks_of_the_answer_before_it() -> None:
    engine = Engine(config(), num_blocks=100)
    first = engine.submit(list(range(9)), max_tokens=12, ignore_eos=True)
    engine.run()
    engine.submit([*range(9), *first.tokens, 5], max_tokens=2)
    engine.run()
    engine.check_results()
    assert engine.scheduler.counters.prefix_cache_hits == 20


def test_requests_of_different_salts_share_nothing() -> None:
    engine = Engine(config(), num_blocks=100)
    for salt in ("a", "b", ""):
        engine.submit(list(range(16)), max_tokens=2, salt=salt)
        engine.run()
    assert engine.scheduler.counters.prefix_cache_hits == 0


def test_an_aborted_request_frees_its_blocks_within_the_step() -> None:
    engine = Engine(config(), num_blocks=100)
    expected = engine.submit(list(range(16)), max_tokens=30, ignore_eos=True)
    for _ in range(3):
        engine.plan()
    engine.abort(expected)
    assert engine.scheduler.pool.num_used == 0
    engine.run()
    engine.check_results()


def test_a_thousand_aborts_at_every_stage_leave_no_block_in_use() -> None:
    engine = Engine(config(max_num_seqs=16), num_blocks=40)
    for index in range(1000):
        expected = engine.submit(list(range(1 + index % 13)), max_tokens=20)
        for _ in range(index % 5):
            engine.plan(), engine.execute(), engine.confirm()
        if not expected.finished:
            engine.abort(expected)
    engine.run()
    engine.check_results()


def test_aborted_requests_behind_a_backlog_do_not_pile_up() -> None:
    engine = Engine(config(policy="priority", max_num_seqs=1), num_blocks=100)
    engine.submit([1], max_tokens=60, ignore_eos=True)
    engine.submit([1], max_tokens=60, ignore_eos=True)
    for _ in range(1000):
        engine.abort(engine.submit([1, 2, 3], priority=9))
    assert len(engine.scheduler.waiting) == 2
    assert len(engine.scheduler.waiting._short) < 100
    engine.run()
    engine.check_results()


def test_giant_prompts_do_not_keep_short_ones_waiting_and_go_on_themselves() -> None:
    engine = Engine(config(max_num_batched_tokens=16, max_model_len=400, run_ahead=0), num_blocks=400)
    giants = [engine.submit([index + 1] * 320, max_tokens=3, ignore_eos=True) for index in range(2)]
    num_steps, shorts = 0, []
    while not all(giant.received for giant in giants):
        if num_steps:
            shorts.append((num_steps, engine.submit([num_steps % 50] * 5, max_tokens=1)))
        engine.plan(), engine.execute(), engine.confirm()
        num_steps += 1
        for came, short in shorts:
            assert short.received or num_steps <= came + 2, f"step {num_steps}: one that came in step {came} waits"
    assert num_steps <= 2 * (320 // 8) + 4, "half of the steps' budget was theirs"
    engine.run()
    engine.check_results()


def test_a_giant_prompt_that_is_alone_has_the_whole_budget() -> None:
    engine = Engine(config(max_num_batched_tokens=16, max_model_len=400, run_ahead=0), num_blocks=400)
    giants = [engine.submit([index + 1] * 160, max_tokens=1, ignore_eos=True) for index in range(2)]
    for _ in range(20):
        engine.plan(), engine.execute(), engine.confirm()
    assert all(giant.received for giant in giants)


def test_short_prompts_do_not_starve_a_giant_one_that_waits_for_blocks() -> None:
    engine = Engine(config(max_num_batched_tokens=16, max_num_seqs=4, run_ahead=1), num_blocks=17)
    giants = [engine.submit([index + 1] * 50, max_tokens=2, ignore_eos=True) for index in range(2)]
    for number in range(200):
        engine.submit([number % 50] * 5, max_tokens=9, ignore_eos=True)
        engine.plan(), engine.execute(), engine.confirm()
    assert all(giant.finished for giant in giants)
    engine.run()
    engine.check_results()


def test_priority_runs_lower_numbers_first_and_fcfs_ignores_them() -> None:
    for policy, first in (("priority", 2), ("fcfs", 0)):
        engine = Engine(config(policy=policy, max_num_seqs=1, run_ahead=0), num_blocks=100)
        for priority in (5, 0, -5):
            engine.submit([1, 2], max_tokens=1, priority=priority)
        engine.plan(), engine.execute(), engine.confirm()
        assert [index for index, expected in engine.requests.items() if expected.received] == [first]


def test_a_request_beyond_the_whole_cache_is_named_as_such() -> None:
    engine = Engine(config(), num_blocks=4)
    expected = engine.submit([1], max_tokens=40)
    message = engine.scheduler.capacity_error(expected.request)
    assert message == "prompt and max_tokens need 41 tokens of KV cache; the engine has 16"


def test_a_request_that_needs_every_block_runs_when_the_others_are_done() -> None:
    engine = Engine(config(), num_blocks=10)
    engine.submit([1, 2], max_tokens=10, ignore_eos=True)
    engine.submit(list(range(10)), max_tokens=30, ignore_eos=True)
    engine.submit([3, 4], max_tokens=10, ignore_eos=True)
    engine.run()
    engine.check_results()


def test_tokens_in_flight_at_a_preemption_are_delivered_and_not_computed_again() -> None:
    engine = Engine(config(enable_prefix_caching=False), num_blocks=16)
    for length in (9, 10, 11, 12):
        engine.submit(list(range(length)), max_tokens=30, ignore_eos=True)
    sampled = 0
    while engine.plan() | engine.confirm():
        if engine.execute():
            sampled += int((engine._executed[-1][0]["token"] >= 0).sum())
    engine.check_results()
    assert engine.scheduler.counters.num_preemptions > 0
    assert sampled == 4 * 30
