"""What copying and computing take, from steps' times, and which is chosen."""

from albireo.coordinator.swap_costs import BLOCKS_REMEMBERED, PROBE_SHARE, SwapCosts
from albireo.shm.plan_ring import PlanCounts

COUNTS = PlanCounts(*[0] * len(PlanCounts._fields))


def observe(costs: SwapCosts, step_ns: int, swap_ns: int = 0, **counts: int) -> None:
    costs.expect(COUNTS._replace(**counts))
    costs.observe(1_000, 1_000 + step_ns, swap_ns)


def measured(block_ns: int, token_ns: int) -> SwapCosts:
    """Blocks of 16 tokens."""
    costs = SwapCosts(16)
    observe(costs, 5_000, num_rows=4)
    observe(costs, 5_000 + 100 * token_ns, num_rows=4, num_chunk_tokens=100)
    observe(costs, 5_000, 50 * block_ns, num_rows=4, num_swap_outs=50)
    return costs


def test_what_was_never_measured_is_tried() -> None:
    costs = SwapCosts(16)
    assert costs.prefers_swap(3)
    observe(costs, 100_000, num_chunk_tokens=100)
    assert costs.prefers_swap(3)


def test_the_cheaper_way_is_chosen_and_a_copy_goes_both_ways() -> None:
    assert measured(block_ns=790, token_ns=100).prefers_swap(3)
    assert not measured(block_ns=1_000, token_ns=100).prefers_swap(3)


def test_a_step_s_decodes_are_not_counted_as_its_prompts() -> None:
    costs = measured(block_ns=1, token_ns=100)
    assert costs._token.ns == 100


def test_results_are_those_of_the_oldest_step_in_flight() -> None:
    costs = SwapCosts(16)
    costs.expect(COUNTS._replace(num_chunk_tokens=10))
    costs.expect(COUNTS._replace(num_rows=1))
    costs.observe(0, 1_000, 0)
    costs.observe(1_000, 1_007, 0)
    assert (costs._token.ns, costs._decode_step.ns) == (100, 7)


def test_old_measurements_fade() -> None:
    costs = measured(block_ns=10_000, token_ns=100)
    assert not costs.prefers_swap(3)
    for _ in range(4):
        observe(costs, 5_000, BLOCKS_REMEMBERED // 2 * 10, num_rows=4, num_swap_ins=BLOCKS_REMEMBERED // 2)
    assert costs.prefers_swap(3)


def test_one_slow_copy_does_not_decide_for_ever() -> None:
    """What is wasted on trying again stays a fifth of the time that computing takes."""
    for times_dearer in (2, 11):
        costs = measured(block_ns=800 * times_dearer, token_ns=100)
        choices = [costs.prefers_swap(3) for _ in range(200)]
        assert sum(choices) == int(200 * PROBE_SHARE / (times_dearer - 1))


def test_steps_that_will_not_be_confirmed_are_forgotten() -> None:
    costs = SwapCosts(16)
    costs.expect(COUNTS._replace(num_chunk_tokens=10))
    costs.forget_planned()
    observe(costs, 7, num_rows=1)
    assert costs._token.ns == 0
