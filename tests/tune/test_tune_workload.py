"""Flags, recorded arrivals, and the requests that follow from them."""

import json
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tune_records import settings

from albireo.bench.prompts import PromptError, load_tokenizer
from albireo.bench.settings import SettingsError
from albireo.serve import DEMO_MODEL
from albireo.tune.settings import LengthRange, parse_range
from albireo.tune.trace_file import Arrival, read_trace
from albireo.tune.workload import make_loads, request_settings

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(str(DEMO_MODEL))


def test_degrees_are_the_divisors_unless_chosen() -> None:
    assert settings("--gpus", "12").degrees == (1, 2, 3, 4, 6, 12)
    assert settings("--tensor-parallel-sizes", "4,1").degrees == (1, 4)


def test_ranges_are_one_number_or_two() -> None:
    assert parse_range("128", "--x") == LengthRange(128, 128)
    assert parse_range("64-256", "--x") == LengthRange(64, 256)


@pytest.mark.parametrize("text", ["", "0", "-4", "9-", "9-4", "a", "1-b", "0-4"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--x"):
        parse_range(text, "--x")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--gpus", "0"], "--gpus must be at least 1"),
        (["--gpus", "65"], "--gpus must be at most 64"),
        (["--tensor-parallel-sizes", "3"], "takes divisors of --gpus 4"),
        (["--request-rate", "0"], "--request-rate takes different rates above 0"),
        (["--request-rate", "2", "2.0"], "--request-rate takes different rates above 0"),
        (["--request-rate", "0.1234567", "0.1234568"], "--request-rate takes different rates above 0"),
        (["--goodput", "ttft:nan"], "--goodput takes METRIC:MILLISECONDS"),
        (["--goodput", "ttft:inf"], "--goodput takes METRIC:MILLISECONDS"),
        (["--trace-speed", "inf"], "--trace-speed must be finite"),
        (["--temperature", "nan"], "--temperature must be at least 0, and finite"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--goodput", "itl:5"], "--goodput takes METRIC:MILLISECONDS"),
        (["--dataset-name", "sharegpt"], "needs the file"),
        (["--dataset-path", "x"], "--dataset-path needs --dataset-name"),
        (
            ["--dataset-name", "custom", "--dataset-path", "x", "--input-len", "5"],
            "--input-len and --prefix-len are for",
        ),
        (["--trace", "x", "--request-rate", "2"], "leave --request-rate out"),
        (["--trace", "x", "--prefix-len", "2"], "leave --prefix-len out"),
        (["--trace", "x", "--burstiness", "2"], "leave --burstiness out"),
        (["--fit-output-len", "2"], "--fit-output-len must be at least 8"),
        (["--trace-speed", "0"], "--trace-speed must be above 0"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags: list[str], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        settings(*flags)


def test_lengths_lie_in_their_ranges_and_are_the_same_again(tokenizer: Tokenizer) -> None:
    asked = settings("--num-prompts", "30", "--input-len", "5-9", "--output-len", "2-4", "--prefix-len", "3")
    prompts = make_loads(asked, tokenizer)["inf"].prompts
    assert {len(prompt.ids) for prompt in prompts} == {8, 9, 10, 11, 12}
    assert {prompt.output_len for prompt in prompts} == {2, 3, 4}
    assert len({tuple(prompt.ids[:3]) for prompt in prompts}) == 1
    assert prompts == make_loads(asked, tokenizer)["inf"].prompts


def test_all_rates_send_the_same_prompts_at_times_of_their_own(tokenizer: Tokenizer) -> None:
    asked = settings("--num-prompts", "11", "--input-len", "5", "--request-rate", "2", "10,inf", "--burstiness", "inf")
    loads = make_loads(asked, tokenizer)
    assert list(loads) == ["2", "10", "inf"]
    assert loads["2"].prompts == loads["inf"].prompts
    assert loads["2"].due_s == pytest.approx([n / 2 for n in range(11)])
    assert loads["10"].due_s[-1] == pytest.approx(1.0)
    assert set(loads["inf"].due_s) == {0.0}


def test_a_dataset_may_have_lengths_drawn_for_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"the {n}", "output_tokens": 50}) + "\n" for n in range(20)))
    flags = ["--dataset-name", "custom", "--dataset-path", str(path), "--num-prompts", "20"]
    own = make_loads(settings(*flags), tokenizer)["inf"].prompts
    drawn = make_loads(settings(*flags, "--output-len", "2-9"), tokenizer)["inf"].prompts
    assert {prompt.output_len for prompt in own} == {50}
    assert {prompt.output_len for prompt in drawn} <= set(range(2, 10))


def test_answers_have_the_asked_length_whatever_their_tokens_are() -> None:
    assert request_settings(settings()).ignore_eos


def test_a_trace_keeps_its_times_and_lengths(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = [(27_000, 6, 3), (25_000, 5, 2), (30_000, 7, 4), (26_000, 0, 4)]
    path.write_text(
        "\n".join(
            json.dumps({"timestamp": t, "input_length": i, "output_length": o, "hash_ids": [1]}) for t, i, o in lines
        )
    )
    assert read_trace(str(path), 10, 2.0) == [
        Arrival(0.0, 5, 2, (1,)),
        Arrival(1.0, 6, 3, (1,)),
        Arrival(2.5, 7, 4, (1,)),
    ]
    load = make_loads(settings("--trace", str(path), "--num-prompts", "2"), tokenizer)["trace"]
    assert load.due_s == [0.0, 2.0]
    assert [(len(prompt.ids), prompt.output_len) for prompt in load.prompts] == [(5, 2), (6, 3)]


def test_prompts_of_a_trace_share_what_their_hash_ids_say(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    blocks = [[7, 8], [7, 9], [7, 8], [8], []]
    lines = [{"timestamp": 0, "input_length": 700, "output_length": 1, "hash_ids": ids} for ids in blocks]
    path.write_text("\n".join(map(json.dumps, lines)))
    load = make_loads(settings("--trace", str(path), "--num-prompts", "5"), tokenizer)["trace"]
    first, sibling, twin, other, alone = [prompt.ids for prompt in load.prompts]
    assert {len(ids) for ids in (first, sibling, twin, other, alone)} == {700}
    assert first == twin
    assert first[:512] == sibling[:512]
    assert first[512:] != sibling[512:]
    assert len({tuple(ids[:16]) for ids in (first, other, alone)}) == 3


def test_azure_s_csv_is_a_trace_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "TIMESTAMP , ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.4799600,3180,8\n"
    )
    assert read_trace(str(path), 10, 1.0) == [Arrival(0.0, 4808, 10), Arrival(0.5, 3180, 8)]


def test_times_without_a_zone_are_not_of_a_place_that_puts_clocks_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{AZURE}2026-03-29 01:59:59,5,1\n2026-03-29 03:00:01,5,1\n")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert [arrival.at_s for arrival in read_trace(str(path), 10, 1.0)] == [0.0, 3602.0]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_times_of_day_are_read_in_json_as_well(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"timestamp": "2024-05-10 00:00:00.1234567+00:00", "input_length": 4, "output_length": 2}\n\n'
        '{"timestamp": "2024-05-10T00:00:02.1234567+00:00", "input_length": 4, "output_length": 2}\n'
    )
    assert [arrival.at_s for arrival in read_trace(str(path), 10, 1.0)] == [0.0, 2.0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no request that can be sent"),
        ('{"timestamp": 1, "input_length": 0, "output_length": 3}', "no request that can be sent"),
        ('{"timestamp": 1, "input_length": 5}', "line 1: .*output_length"),
        ('{"timestamp": "noon", "input_length": 5, "output_length": 3}', "is no trace"),
        ('{"timestamp": 1, "input_length": 20000000, "output_length": 3}', "line 1: .*<= 10000000.*input_length"),
        ('{"timestamp": 1e999, "input_length": 5, "output_length": 3}', "line 1: Number out of range"),
        ('{"timestamp": 1, "more": ' + "[" * 100_000, "line 1: maximum recursion depth"),
        (
            '{"timestamp": 1, "input_length": 513, "output_length": 3, "hash_ids": [1, 2, 3]}',
            "line 1: hash_ids .*most 2",
        ),
        ('{"timestamp": 1, "input_length": 513, "output_length": 3, "hash_ids": ["a"]}', "line 1: .*hash_ids"),
        (f"{AZURE}2023-11-16 18:17:03,x,1", r"line 2: .*\[0\]"),
        (f"{AZURE}2023-11-16 18:17:03,5,1\n2023-11-16 18:17:04", "line 3: not enough values"),
        (f"{AZURE}2023-11-16 18:17:03,-5,1", "line 2: Expected `int` >= 0"),
        (f"{AZURE}2023-11-16 18:17:03,5,20000000", "line 2: Expected `int` <= 10000000"),
        (f'{AZURE}"' + "5" * 200_000, "field larger than field limit"),
    ],
)
def test_a_file_that_is_no_trace_is_one_line(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(PromptError, match=reason) as error:
        read_trace(str(path), 10, 1.0)
    assert "\n" not in str(error.value)


def test_a_missing_trace_is_said(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="cannot read --trace"):
        read_trace(str(tmp_path / "none"), 1, 1.0)
