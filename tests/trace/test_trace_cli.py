"""`albireo-run trace` on a record of made-up steps: what it prints, and how it fails."""

import json
from pathlib import Path

import pytest
from flight_logs import make_log, make_logs

from albireo.cli import main
from albireo.shm import flight


@pytest.fixture
def record(tmp_path: Path) -> str:
    path = str(tmp_path / "crash.npz")
    flight.dump(path, make_logs(30))
    return path


def test_a_record_is_summarised(record: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "--record", record]) == 0
    printed = capsys.readouterr().out
    assert "steps 1 to 30: 29 with a known period; 100000.0 steps/s" in printed
    assert "exposed: 10.00% of the time; per step mean 1 us" in printed
    assert "bound of the speed-up by the former: 1.82 for 2 ranks" in printed
    assert any(line.split()[:2] == ["coordinator-0", "CONFIRM"] for line in printed.splitlines())


def test_chosen_steps_go_into_the_files(record: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, gantt = tmp_path / "t.json", tmp_path / "g.png"
    arguments = ["trace", "--record", record, "--steps", "10:12", "--out", str(out), "--gantt", str(gantt)]
    assert main(arguments) == 0
    assert "steps 10 to 12: 3 with a known period" in capsys.readouterr().out
    forward = {e["args"]["step"] for e in json.loads(out.read_text())["traceEvents"] if e["name"] == "FORWARD"}
    assert {10, 11, 12} <= forward <= {9, 10, 11, 12, 13}
    assert gantt.stat().st_size > 0


def test_the_last_steps_are_those_of_the_end(record: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "--record", record, "--last-steps", "5"]) == 0
    assert "steps 26 to 30" in capsys.readouterr().out


def test_a_single_first_step_has_no_gap_to_tell_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "one.npz")
    flight.dump(path, make_logs(1))
    assert main(["trace", "--record", path]) == 0
    assert "none with work before it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--steps", "90:95"], "no step from 90 to 95 is in the record, which has steps 1 to 30"),
        (["--seconds", "1"], "--seconds watches an engine that runs"),
        (["--gantt", "x.gif"], "--gantt makes .png and .svg files, not x.gif"),
        (["--out", "no/such/folder/t.json"], "No such file or directory"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_1(
    record: str, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "--record", record, *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("albireo-run trace: ")
    assert text in line


@pytest.mark.parametrize("damage", ["cut off", "changed"])
def test_a_damaged_record_is_one_line(record: str, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(Path(record).read_bytes())
    data[len(data) // 2] ^= 255
    Path(record).write_bytes(data[:-100] if damage == "cut off" else data)
    assert main(["trace", "--record", record]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is no flight record" in line


def test_a_file_that_is_no_record_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.npz").write_bytes(b"none")
    assert main(["trace", "--record", str(tmp_path / "x.npz")]) == 1
    assert "is no flight record" in capsys.readouterr().err
    flight.dump(str(tmp_path / "empty.npz"), [make_log("worker-0", [])])
    assert main(["trace", "--record", str(tmp_path / "empty.npz")]) == 1
    assert "no step has been recorded yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--steps", "9:3"], "'9:3' is no range: 100:200 is"),
        (["--steps", "7"], "'7' is no range"),
        (["--last-steps", "0"], "0 is out of range: at least 1 is possible"),
        (["--seconds", "0"], "above 0 and at most 3600 is possible"),
        (["--seconds", "1", "--steps", "1:2"], "not allowed with"),
        (["--port", "1", "--record", "x"], "not allowed with"),
    ],
)
def test_bad_arguments_are_exit_code_2(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["trace", *arguments])
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err


def test_without_an_engine_it_says_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    assert main(["trace"]) == 1
    assert "start one with `albireo-run serve`" in capsys.readouterr().err
