"""`albireo-run tune`: command lines, refusals, and a run on the null device."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace
from tune_records import load, record, settings, step, throughputs, turn

from albireo.bench.settings import SettingsError
from albireo.cli import main
from albireo.engine_file import EngineInfo, find_engines
from albireo.tune.figures import Refusal, Turn
from albireo.tune.settings import TRACE
from albireo.tune.table import load_rows, notes, refusal_lines
from albireo.tune.variants import (
    AS_GIVEN,
    VARIANTS,
    NoRoomError,
    kv_cache_bytes,
    model_bytes,
    serve_arguments,
    serve_command,
)

SHORT = ["--num-prompts", "6", "--input-len", "8-12", "--output-len", "8", "--rounds", "1",
         "--fit-batch", "2", "--fit-input-len", "8", "--fit-output-len", "8"]  # fmt: skip


def test_a_server_gets_its_degree_its_replicas_and_the_flags_behind_the_dashes() -> None:
    asked = settings("--tokenizer", "tok", serve_flags=["--device", "null"])
    assert serve_arguments(asked, 2, VARIANTS[0]) == [
        "--tensor-parallel-size", "2", "--replicas", "2", "--tokenizer", "tok", "--device", "null",
    ]  # fmt: skip
    assert "--replicas" not in serve_arguments(asked, 4, VARIANTS[0])
    assert serve_arguments(asked, 4, VARIANTS[3])[-4:] == ["--run-ahead", "0", "--sampling-mode", "gathered"]
    assert serve_command(asked, 4).endswith("--tensor-parallel-size 4 --tokenizer tok --device null")


def test_memory_per_gpu_leaves_the_cache_what_the_weights_do_not_take() -> None:
    weights = model_bytes(settings().model, ())
    asked = settings("--memory-per-gpu", str(weights + 1000))
    assert kv_cache_bytes(asked, 1) == 1000
    assert kv_cache_bytes(asked, 4) == 3 * weights + 4000
    assert model_bytes(settings().model, ["--dtype", "float32"]) == 2 * weights
    assert model_bytes(settings().model, ["--dtype=bfloat16", "--dtype=float32"]) == 2 * weights
    assert model_bytes(settings().model, ["--served-model-name", "float32"]) == weights
    with pytest.raises(NoRoomError, match="the weights take"):
        kv_cache_bytes(settings("--memory-per-gpu", str(weights)), 1)


@pytest.mark.parametrize("flag", ["--tensor-parallel-size", "-tp", "--replicas=3", "--model", "--kv-cache-bytes=1G"])
def test_what_is_measured_cannot_be_set_behind_the_dashes(flag: str) -> None:
    with pytest.raises(SettingsError, match=f"{flag.partition('=')[0]} cannot stand behind `--`"):
        settings("--memory-per-gpu", "1G", serve_flags=["--device", "null", flag, "3"])
    assert settings(serve_flags=["--kv-cache-bytes", "1G"]).serve_flags, "the server's own business"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["demo"], 2, "--gpus says how many devices"),
        (["demo", "--gpus", "2", "--report", "x.pdf"], 2, "--report makes .html files"),
        (["demo", "--from", "x.json"], 2, "only --report goes with it: leave MODEL out"),
        (["--from", "x.json", "--goodput", "ttft:50"], 2, "only --report goes with it: leave --goodput out"),
        (["--from", "x.json", "--report", "x.html", "--", "--device", "null"], 2, "leave -- out"),
        (["--from", "none.json"], 2, "cannot read --from none.json"),
        (["demo", "--gpus", "1", "--trace", "none"], 1, "cannot read --trace none"),
        (["no/such/model", "--gpus", "1"], 1, "no tokenizer at 'no/such/model'"),
    ],
)
def test_a_failure_is_one_line(arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("albireo-run tune: ")
    assert text in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("flag", ["--save", "--report"])
@pytest.mark.parametrize("name", ["folder.html", "file/new/x.html"])
def test_a_file_that_cannot_be_written_is_said_before_the_run(
    flag: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").touch()
    assert main(["tune", "demo", "--gpus", "1", flag, str(tmp_path / name), "--", "--device", "nothing"]) == 2
    assert f"{flag} {tmp_path / name} cannot be written" in capsys.readouterr().err


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    return tmp_path


@pytest.mark.e2e
def test_a_run_names_t_e_and_a_degree_that_is_refused_is_a_row(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, page = run_dir / "t.json", run_dir / "t.html"
    trace = run_dir / "trace.jsonl"
    trace.write_text("".join(f'{{"timestamp": {20 * n}, "input_length": 9, "output_length": 6}}\n' for n in range(9)))
    flags = ["--gpus", "3", "--tensor-parallel-sizes", "3", "--save", str(saved), *SHORT[6:]]
    files = ["--trace", str(trace), "--goodput", "ttft:5000", "--report", str(page)]
    assert main(["tune", "demo", *flags, *files, "--num-prompts", "8", "--", "--device", "null"]) == 3
    refused = capsys.readouterr().err.splitlines()[-1]
    assert "tensor-parallel size 3 does not divide" in refused
    flags[1], flags[3] = "1", "1"
    engine = ["--", "--device", "null", "--null-step-ms", "2", "--api-key", "its-own"]
    assert main(["tune", "demo", *flags, *files, "--num-prompts", "8", *engine]) == 0
    printed = capsys.readouterr().out
    assert "t_e = 1: " in printed
    assert "no meter" in printed
    assert "--tensor-parallel-size 1 --device null --null-step-ms 2" in printed
    assert not any("its-own" in each for each in (printed, saved.read_text(), page.read_text())), "a key is kept"
    figures = json.loads(saved.read_text())
    (turn,) = figures["turns"]
    (load,) = turn["loads"]
    assert (load["load"], load["completed"], load["failed"], load["good_share"]) == (TRACE, 8, 0, 1.0)
    assert load["duration_s"] > 7 * 0.02  # the eighth comes after 140 ms
    assert load["steps"] > 0
    assert turn["kv_blocks"] > 0
    assert turn["step"]["batch"] == 2
    assert turn["step"]["period_us"] > 2000
    assert "<svg" in page.read_text()


@pytest.mark.e2e
def test_a_server_that_ends_while_it_is_measured_has_no_figures(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure_and_die(*about: object) -> Turn:
        engine = about[-1]
        assert isinstance(engine, EngineInfo)
        os.kill(engine.pid, signal.SIGKILL)
        os.waitid(os.P_PID, engine.pid, os.WEXITED | os.WNOWAIT)
        return turn(1, load(5.0), num_gpus=1)

    monkeypatch.setattr("albireo.tune.measure._measure_engine", measure_and_die)
    assert main(["tune", "demo", "--gpus", "1", *SHORT, "--", "--device", "null"]) == 3
    assert "the server ended with exit code -9 while it was measured" in capsys.readouterr().err


def test_a_degree_that_was_not_come_to_is_no_refused_one() -> None:
    given = record(throughputs({1: [5]}), refusals=[Refusal(AS_GIVEN, 2, 2, "no room")])
    assert load_rows(given, "inf")[0] == ["", "t = 1 x 4", "t = 2 x 2, refused", "t = 4 x 1, not measured"]


def test_a_degree_that_lost_its_server_in_a_later_round_has_figures_of_those_before() -> None:
    refusals = [Refusal(AS_GIVEN, 2, 2, "gone"), Refusal(AS_GIVEN, 4, 1, "gone")]
    lines = refusal_lines(record(throughputs({1: [5, 5, 5], 2: [6, 6]}), refusals=refusals))
    assert lines == [
        "t = 2 x 2 (as served) has figures of 2 rounds only: gone", "t = 4 x 1 (as served) has no figures: gone",
    ]  # fmt: skip


@pytest.mark.e2e
def test_ctrl_c_leaves_no_server(run_dir: Path) -> None:
    command = [sys.executable, "-m", "albireo.cli", "tune", "demo", "--gpus", "1", *SHORT]
    command[command.index("--output-len") + 1] = "1000"
    tune = subprocess.Popen([*command, "--", "--device", "null", "--null-step-ms", "50"],
                            env={**os.environ}, stderr=subprocess.PIPE, text=True)  # fmt: skip
    deadline = time.monotonic() + 60
    while not (engines := find_engines()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert engines
    tune.send_signal(signal.SIGINT)
    _, error = tune.communicate(timeout=60)
    assert tune.returncode == 1
    assert error.splitlines()[-1] == "albireo-run tune: interrupted, no result"
    assert not Path(f"/proc/{engines[0].pid}").exists()


def test_a_remark_that_several_turns_have_names_the_degree_of_each() -> None:
    numbers = {1: (7,), 2: (9, 30, 31), 4: (8,)}
    turns = [
        replace(turn(degree, load(5.0), cost=step(100.0)), remarks=(f"inf: {short} requests ended before 16 tokens",))
        for degree, counts in numbers.items()
        for short in counts
    ]
    assert notes(record(turns[:1])) == ["t = 1, inf: 7 requests ended before 16 tokens"]
    assert notes(record(turns)) == [
        "t = 1, inf: 7 requests ended before 16 tokens (and 4 more like it: 3 at t = 2, 1 at t = 4)"
    ]
