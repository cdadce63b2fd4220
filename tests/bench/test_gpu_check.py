"""tools/gpu_check.py and its parts: what runs without a GPU and without a server."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from gpu_sections.budget import RESERVE_S, Budget
from gpu_sections.floors import floor_ms, kv_bytes, prefill_steps, step_weight_bytes
from gpu_sections.job import Job, JobInput
from gpu_sections.job_decode import context_tokens
from gpu_sections.job_parity import TOLERANCE, agreement, differences
from gpu_sections.job_start import stages
from gpu_sections.job_structured import Beside, is_valid, report
from gpu_sections.job_tests import read
from gpu_sections.jobs import run_job
from gpu_sections.model import write_model_folder, write_weights
from gpu_sections.options import SECTIONS, Options, add_flags, choose_sections, options_from
from gpu_sections.parity_reference import NEW_TOKENS, Greedy
from gpu_sections.report import Report, Row, table

from albireo.checkpoint import read_checkpoint
from albireo.trace.steps import Steps

REPO = Path(__file__).parents[2]
TOOL = [sys.executable, str(REPO / "tools" / "gpu_check.py")]


def options(tmp_path: Path, *argv: str) -> Options:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return options_from(parser.parse_args(["--out", str(tmp_path), "--work", str(tmp_path), *argv]), [])


def test_sections_are_run_by_importance_however_they_are_named() -> None:
    assert choose_sections("kernels, step,tests") == ("tests", "step", "kernels")
    with pytest.raises(ValueError, match="not 'steps'"):
        choose_sections("tests,steps")
    with pytest.raises(ValueError, match="--sections knows"):
        choose_sections(",")


def test_flags_change_the_workload_of_the_shape(tmp_path: Path) -> None:
    chosen = options(tmp_path, "--model-shape", "tiny", "--batches", "8,2", "--requests", "5")
    assert (chosen.workload.batches, chosen.workload.requests, chosen.workload.input_len) == ((2, 8), 5, 32)
    assert chosen.sections == SECTIONS
    for wrong in (["--batches", "1,0"], ["--batches", "1,x"], ["--steps", "0"]):
        with pytest.raises(ValueError, match=wrong[0]):
            options(tmp_path, *wrong)


def test_quick_is_one_family_and_the_smaller_batches(tmp_path: Path) -> None:
    quick = options(tmp_path, "--quick")
    assert (quick.sections, len(quick.families), quick.workload.batches) == (("tests", "parity", "step"), 1, (1, 64))
    assert quick.budget_s < options(tmp_path).budget_s


def test_what_no_longer_fits_gets_no_time() -> None:
    now = [100.0]
    budget = Budget(60.0, lambda: now[0])
    assert budget.timeout_s(20, 30) == 30
    now[0] = 130.0
    assert budget.timeout_s(20, 30) == 60 - 30 - RESERVE_S
    assert budget.timeout_s(25, 30) is None
    now[0] = 500.0
    assert (budget.left_s(), budget.timeout_s(1, 30)) == (0, None)


def test_table_has_a_rule_per_section_and_notes_below_their_row() -> None:
    rows = [Row("step", "batch 1", "5 ms", "floor 4 ms", "1.25 x"), Row("step", "batch 64", "8 ms", notes=("why",))]
    assert table([*rows, Row("energy", "run-ahead 2", "3 J")], ["head"]).splitlines() == [
        "head",
        "section  what         value  against",
        "-" * 47,
        "step     batch 1      5 ms   floor 4 ms  1.25 x",
        "         batch 64     8 ms",
        "    | why",
        "-" * 47,
        "energy   run-ahead 2  3 J",
        "-" * 47,
    ]


def test_report_on_disk_is_always_whole_and_in_the_order_of_the_sections(tmp_path: Path) -> None:
    report = Report(tmp_path, SECTIONS, [])
    report.add([Row("energy", "e", "1")], {"x": [1.5]})
    report.add([Row("step", "s", "2")])
    text = (tmp_path / "table.txt").read_text()
    assert text.index("step") < text.index("energy")
    assert msgspec.json.decode((tmp_path / "results.json").read_bytes())["details"] == {"x": [1.5]}


def test_floor_of_the_8b_shape_is_its_weights_and_its_context_over_the_bandwidth(tmp_path: Path) -> None:
    model = write_model_folder(tmp_path, "8b")
    assert step_weight_bytes(model, 64, 2) == 2 * (8_030_261_248 - 128_256 * 4096 + 64 * 4096)
    assert kv_bytes(model, 1000, 2) == 131_072_000
    expected = (step_weight_bytes(model, 1, 2) + 131_072_000) / 3e12 * 1e3
    assert floor_ms(model, 1, 1000, 2, 3e12) == pytest.approx(expected)
    assert 4.5 < expected < 5.5


def test_a_tied_table_is_read_as_the_head(tmp_path: Path) -> None:
    assert step_weight_bytes(write_model_folder(tmp_path, "1b"), 1, 2) == 2 * (1_235_814_400 + 2048)


def test_prompts_that_come_at_once_take_so_many_steps() -> None:
    assert prefill_steps(1, 64, 2048) == 1
    assert prefill_steps(2, 2048, 2048) == 3  # the first row decodes beside the second prompt, which needs one more
    assert prefill_steps(256, 900, 2048) == pytest.approx(256 * 900 / (2048 - 128), abs=3)


def test_context_grows_by_a_token_for_each_row_of_each_step_before() -> None:
    number = np.arange(4)
    zeros = np.zeros(4, np.int64)
    steps = Steps(number, zeros, zeros, zeros, zeros, np.array([0, 1, 2, 2]))
    assert context_tokens(steps, 2, 10).tolist() == [22, 22, 23, 25]


def greedy(best: list[float]) -> Greedy:
    """Every token is 1, of logprob -0.5; `best` are the logprobs of ids 0 and up at each."""
    scores = [-0.5] * NEW_TOKENS
    return Greedy([4], [1] * NEW_TOKENS, scores, [best] * NEW_TOKENS, scores, [-0.6] * NEW_TOKENS)


def test_another_token_is_a_tie_or_a_mistake_by_its_logprob() -> None:
    ours = [1] * 5 + [0] * (NEW_TOKENS - 5)
    scores = [-0.5001] * 5 + [-9.0] * (NEW_TOKENS - 5)
    tied = agreement([greedy([-0.5 - TOLERANCE / 2, -0.5])], [(ours, scores)])
    assert (tied.equal, tied.ties, tied.wrong) == (0, 1, [])
    assert tied.largest == pytest.approx(1e-4)
    wrong = agreement([greedy([-0.9, -0.5])], [(ours, scores)])
    assert (wrong.ties, wrong.wrong) == (0, ["prompt of 1: token 5 is [0, 0, 0] and should be [1, 1, 1]"])
    short = agreement([greedy([-0.5, -0.5])], [([1] * 5, scores[:5])])
    assert (short.ties, len(short.wrong)) == (0, 1)
    equal = agreement([greedy([-0.9, -0.5])], [([1] * NEW_TOKENS, [-0.5] * NEW_TOKENS)])
    assert (equal.equal, equal.largest) == (1, 0)


def test_bf16_is_judged_beside_transformers_own() -> None:
    found = differences([greedy([])], [([], [-0.5] * (NEW_TOKENS - 1) + [-0.3])])
    assert found == pytest.approx({"mean": 0.2 / NEW_TOKENS, "their_mean": 0.1, "max": 0.2, "their_max": 0.1})


def test_pytest_output_is_read() -> None:
    lines = ["FAILED tests/a.py::b - assert 0", "2 failed, 31 passed, 1 skipped in 12.1s (0:00:12)", ""]
    assert read(lines) == ({"failed": 2, "passed": 31, "skipped": 1}, ["FAILED tests/a.py::b - assert 0"])
    assert read(["ImportError: no module"]) == ({}, [])


def test_stages_of_a_start_are_the_processes_lines() -> None:
    lines = [(0.5, "worker-0: loading weights"), (0.6, "some warning"), (2.0, "albireo ready: http://x")]
    assert stages(lines) == [(0.5, "worker-0: loading weights")]


def test_written_weights_are_a_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    nbytes = write_weights(tmp_path, write_model_folder(tmp_path, "tiny"))
    read_checkpoint(str(tmp_path), check_weights=True)
    tensors = load_file(tmp_path / "model-00001-of-00001.safetensors")
    assert sum(tensor.nbytes for tensor in tensors.values()) == nbytes
    assert set(tensors["model.norm.weight"].tolist()) == {1.0}
    assert 0.019 < tensors["lm_head.weight"].float().std() < 0.021


def given(tmp_path: Path, timeout_s: float) -> JobInput:
    return JobInput(options(tmp_path, "--device", "cpu"), str(tmp_path), str(tmp_path / "result.json"), timeout_s)


def test_answers_are_checked_against_the_schema() -> None:
    assert is_valid('{"name": "Vega", "count": 0, "is_new": false, "kind": "star"}')
    for wrong in (
        '{"name": "Vega", "count": 0, "is_new": false, "kind": "star"', "[]", '{"name": "Vega"}',
        '{"name": "Vega", "count": 0, "is_new": false, "kind": "moon"}',
        '{"name": "Vega", "count": 0.5, "is_new": false, "kind": "star"}',
        '{"name": "Vega", "count": true, "is_new": false, "kind": "star"}',
        '{"name": "Vega", "count": 10000, "is_new": false, "kind": "star"}',
        '{"name": "Vega and Altair", "count": 1, "is_new": false, "kind": "star"}',
        '{"name": "Vega", "count": 1, "is_new": 1, "kind": "star"}',
        '{"name": "Vega", "count": 1, "is_new": true, "kind": "star", "more": 1}',
    ):  # fmt: skip
        assert not is_valid(wrong), wrong


@pytest.mark.parametrize(("best", "verdict"), [(10.9, "passed"), (11.1, "NOT PASSED")])
def test_streams_beside_constrained_ones_may_be_a_tenth_slower(tmp_path: Path, best: float, verdict: str) -> None:
    job = Job(given(tmp_path, 60))
    turns = {False: [Beside(10.0, 9, 20, 50), Beside(13.0, 9, 20, 40)], True: [Beside(14.0, 9, 20, 30)]}
    turns[True].append(Beside(best, 9, 20, 25))
    report(job, turns)
    rows = job._result.rows
    assert [row.verdict for row in rows] == [verdict, "0.50 x"]


def test_a_job_that_fails_leaves_its_last_words(tmp_path: Path) -> None:
    end = run_job("job_decode", given(tmp_path, 60), tmp_path / "log.txt", lambda text: None)
    assert (end.problem, end.tail[-1]) == ("failed with exit code 1", "no engine with pid 0 can be read")
    assert end.result.rows == []


def test_a_job_is_ended_when_its_time_is_over(tmp_path: Path) -> None:
    end = run_job("job_peer", given(tmp_path, 0.3), tmp_path / "log.txt", lambda text: None)
    assert end.problem == "ended after 0 s"


def test_without_time_every_section_is_told_as_skipped(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--model-shape", "tiny", "--budget-s", "1", "--out", str(tmp_path / "out")]
    ran = subprocess.run([*TOOL, *arguments], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    printed = ran.stdout[ran.stdout.index("tools/gpu_check.py") :]
    assert printed.strip() == (tmp_path / "out" / "table.txt").read_text().strip()
    lines = [line for line in printed.splitlines() if line.endswith("skipped: no time")]
    assert {line.split()[0] for line in lines} == {
        "tests",
        "parity",
        "step",
        "exposed",
        "throughput",
        "start",
        "kernels",
    }


def test_without_cuda_it_says_so_and_exits_with_3() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(TOOL, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 3
    assert ran.stderr == "gpu_check: no CUDA device here; --device cpu tries the tool itself\n"
