"""t_e: the best degree, how sure that is, and what moves it."""

import pytest
from tune_records import load, record, throughputs, turn

from albireo.tune.choice import choose, choose_of, is_carried_by_all
from albireo.tune.conclusions import ablation_sentences, choice_sentences
from albireo.tune.figures import Ranged
from albireo.tune.variants import BOTH_OFF, GATHERED, NO_RUN_AHEAD


def test_the_best_median_is_named_with_its_margin_and_overlap() -> None:
    found = record(throughputs({1: [100, 110, 90], 2: [120, 130, 125], 4: [105, 122, 121]}))
    choice = choose_of(found)
    assert choice is not None
    assert (choice.degree, choice.next_degree, choice.overlaps) == (2, 4, True)
    assert choice.margin is not None
    assert round(choice.margin, 3) == round(125 / 121 - 1, 3)
    first = choice_sentences(found)[0]
    assert first == (
        "t_e = 2: 125 (120–130) output tokens/s; 3.3% ahead of t = 4 (121 (105–122)), and their ranges overlap: "
        "the rounds do not tell them apart."
    )


def test_ranges_apart_are_said_to_be() -> None:
    assert choice_sentences(record(throughputs({1: [100, 101], 2: [120, 121]})))[0].endswith("do not overlap.")


def test_of_equal_degrees_the_smallest_is_named() -> None:
    value = Ranged(5.0, 5.0, 5.0)
    choice = choose({4: value, 2: value, 8: Ranged(1.0, 1.0, 1.0)})
    assert choice is not None
    assert (choice.degree, choice.is_tie) == (2, True)
    assert (
        "t = 4 is as good, and the smaller one is named" in choice_sentences(record(throughputs({2: [5], 4: [5]})))[0]
    )


def test_one_round_has_no_range_and_says_so() -> None:
    text = choice_sentences(record(throughputs({1: [100], 2: [150]})))[0]
    assert "50.0% ahead of t = 1" in text
    assert "nothing says how sure this is" in text


def test_a_degree_that_an_interruption_left_with_one_round_has_no_range_either() -> None:
    text = choice_sentences(record(throughputs({1: [100, 101], 2: [150]})))[0]
    assert "one round has no range" in text


def test_a_single_degree_is_named_without_a_margin() -> None:
    assert choice_sentences(record(throughputs({2: [7]})))[0] == "t_e = 2: 7 output tokens/s; no other t has a figure."


def test_goodput_decides_where_there_is_a_target_and_each_degree_has_its_best_load() -> None:
    turns = [
        turn(1, load(900.0, "inf", goodput=1.0), load(100.0, "4", goodput=3.0)),
        turn(2, load(800.0, "inf", goodput=2.0), load(90.0, "4", goodput=3.5)),
    ]
    found = record(turns, "--request-rate", "inf", "4", "--goodput", "ttft:200")
    choice = choose_of(found)
    assert choice is not None
    assert (choice.degree, choice.value.median) == (2, 3.5)
    assert "each t at its best load" in choice_sentences(found)[0]


def test_no_degree_that_meets_the_target_is_no_t_e() -> None:
    found = record([turn(1, load(9.0, goodput=0.0)), turn(2, load(8.0, goodput=0.0))], "--goodput", "ttft:1")
    assert choose_of(found) is None
    assert choice_sentences(found) == ["No t_e: no request met ttft:1 at any t."]


@pytest.mark.parametrize(("end_s", "median_s", "is_carried"), [(9.9 + 2.2, 2.0, True), (9.9 * 1.2 + 2, 3.0, False)])
def test_a_rate_that_all_degrees_carry_is_said_to_tell_nothing(end_s: float, median_s: float, is_carried: bool) -> None:
    """100 requests at 10 a second: the last one comes after 9.9 s."""
    latencies = {"e2el": {"p50": 1e3 * median_s}}
    loads = [load(50.0, "10", request_throughput=100 / end, latencies_ms=latencies) for end in (end_s, 9.9 + 2)]
    found = record([turn(t, each) for t, each in zip((1, 2), loads, strict=True)], "--request-rate", "10",
                   "--num-prompts", "100")  # fmt: skip
    assert is_carried_by_all(found, "10") == is_carried
    assert any("throughput does not tell them apart" in line for line in choice_sentences(found)) == is_carried


def test_the_mechanism_that_moves_t_e_is_named() -> None:
    turns = [
        *throughputs({1: [100, 101], 2: [140, 141]}),
        *throughputs({1: [99, 100], 2: [80, 81]}, NO_RUN_AHEAD),
        *throughputs({1: [100, 101], 2: [135, 136]}, GATHERED),
        *throughputs({1: [98, 99], 2: [75, 76]}, BOTH_OFF),
    ]
    lines = ablation_sentences(record(turns, "--ablate"))
    assert "Without run-ahead t_e is 1, with it 2." in lines
    assert not any("Without distributed sampling" in line for line in lines)
    assert lines[-1].startswith("Together they move t_e from 1 to 2: run-ahead; the best value changes by +42")
    assert "staying at t = 1" in lines[-1]


def test_mechanisms_that_leave_t_e_are_said_to() -> None:
    turns = [*throughputs({1: [100], 2: [140]}), *throughputs({1: [90], 2: [112]}, BOTH_OFF)]
    assert ablation_sentences(record(turns, "--ablate"))[-1] == (
        "With and without the mechanisms t_e is 2; what they bring there is +25.0%."
    )
