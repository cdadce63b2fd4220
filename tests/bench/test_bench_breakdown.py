"""`albireo-run bench breakdown`: its settings, its medians, and a run on the demo model."""

import json
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from albireo.bench.breakdown import BreakdownSettings, Turn, parse_run_aheads
from albireo.bench.breakdown_report import report
from albireo.bench.medians import median_of
from albireo.bench.settings import SettingsError
from albireo.cli import main
from albireo.trace.overlap import NonScalable, Overlap, PartTime, Spread


def turn(value: float, *parts: str) -> Turn:
    spread = Spread(value, value, value, value, value)
    times = [PartTime("worker-0", part, value, value, value, value, value, value) for part in parts]
    limits = NonScalable(value, value, {2: value})
    return Turn(2, value, value, Overlap(int(value), 1, spread, spread, spread, value, value, limits, times))


def test_every_figure_is_its_median_and_a_part_counts_where_it_is() -> None:
    middle = median_of([turn(1.0, "FORWARD"), turn(9.0, "FORWARD", "SAMPLE"), turn(5.0, "FORWARD")])
    parts = [*turn(5.0, "FORWARD").overlap.parts, *turn(9.0, "SAMPLE").overlap.parts]
    assert middle == replace(turn(5.0), overlap=replace(turn(5.0).overlap, parts=parts))


def test_a_figure_that_a_round_lacks_has_no_median_and_no_row() -> None:
    settings = BreakdownSettings("m", 1, 1, 8, 1, 0.0, (2,), 1, "local", (), 2, None)
    plain = turn(1.0)
    limits = replace(plain.overlap.non_scalable, speed_up_bounds={2: 1.0, 4: 1.0, 8: 1.0})
    plain = replace(plain, overlap=replace(plain.overlap, non_scalable=limits))
    metered = [replace(plain, gpu_busy_share=0.5, joules_per_output_token=joules) for joules in (0.25, 0.75)]
    assert "| joules per output token of the whole run | 0.5 (0.25–0.75) |" in report(settings, metered, True)
    assert "| GPU busy with steps, share of the whole run | 50.00% (50.00%–50.00%) |" in report(settings, metered, True)
    half = [metered[0], replace(metered[1], joules_per_output_token=None)]
    assert "joules" not in report(settings, half, True)
    assert "GPU busy" in report(settings, half, True)
    assert "GPU busy" not in report(settings, [plain, plain], True)


def test_run_aheads_are_different_numbers() -> None:
    assert parse_run_aheads("0,2,4") == (0, 2, 4)
    for text in ("", "0,", "2,2", "17", "-1", "a"):
        with pytest.raises(SettingsError, match="different numbers from 0 to 16"):
            parse_run_aheads(text)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--batch", "0"], 2, "--batch must be at least 1, not 0"),
        (["--output-len", "2"], 2, "--output-len must be at least 8, not 2"),
        (["--run-ahead", "x"], 2, "--run-ahead takes different numbers"),
        (["--", "--replicas", "2"], 2, "--replicas must be 1"),
        (["--", "--replicas=2"], 2, "--replicas must be 1"),
        (["--", "--max-model-len", "1"], 1, "the server ended with exit code 2: albireo-run serve: argument"),
    ],
)
def test_a_failure_is_one_line(arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "breakdown", "demo", *arguments]) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("albireo-run bench breakdown: ")
    assert text in line


@pytest.mark.e2e
@pytest.mark.slow
def test_a_breakdown_of_the_demo_model_has_all_parts_for_each_run_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    saved = tmp_path / "b.json"
    arguments = ["--batch", "2", "--input-len", "8", "--output-len", "40", "--waves", "1", "--rounds", "1"]
    files = ["--save", str(saved), "--gantt-dir", str(tmp_path / "pictures"), "--markdown"]
    assert main(["bench", "breakdown", "demo", *arguments, *files, "--", "--kv-cache-bytes", "16M"]) == 0
    printed = capsys.readouterr().out
    assert "| exposed, share of the step |" in printed
    assert any(line.startswith("| worker-0 FORWARD |") for line in printed.splitlines())
    turns = json.loads(saved.read_text())["turns"]
    assert [turn["run_ahead"] for turn in turns] == [0, 2]
    for found in turns:
        assert 20 <= found["overlap"]["num_steps"] < 40
        parts = {(part["process"], part["part"]) for part in found["overlap"]["parts"]}
        assert {("coordinator-0", "SCHEDULE"), ("coordinator-0", "CONFIRM"), ("worker-0", "SAMPLE")} <= parts
    assert sorted(os.listdir(tmp_path / "pictures")) == ["run-ahead-0.png", "run-ahead-2.png"]
