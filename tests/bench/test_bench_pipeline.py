"""`bench pipeline` on real processes: its figures fit together. How fast they are is nobody's business here."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest

from albireo.bench.pipeline_cli import add_pipeline_arguments, run_pipeline
from albireo.bench.process_cpu import cpu_seconds


def bench(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    add_pipeline_arguments(parser)
    return run_pipeline(parser.parse_args(["--warmup", "0.3", "--duration", "1", *flags]))


def measurements(path: Path, *flags: str) -> list[dict[str, Any]]:
    assert bench("--save", str(path), *flags) == 0
    found: list[dict[str, Any]] = json.loads(path.read_text())["measurements"]
    return found


def test_the_control_plane_alone_is_measured_while_the_batch_stays_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (measured,) = measurements(
        tmp_path / "out.json", "--batch", "4", "--step-ms", "1", "--output-len", "100", "-tp", "2"
    )
    assert measured["client"] == "zmq"
    assert 1 <= measured["wall_s"] < 10
    assert 0 < measured["steps"] <= measured["wall_s"] * 1000 + 10
    assert 2 * measured["steps"] < measured["tokens"] <= 4 * measured["steps"] + 16
    assert measured["tokens_per_s"] == pytest.approx(measured["tokens"] / measured["wall_s"])
    assert set(measured["core_share"]) == {"coordinator", "worker", "client"}
    assert all(0 <= share < 4 for share in measured["core_share"].values())
    assert measured["step_device_us"] >= 1000
    assert 0 < measured["interval_p50_us"] <= measured["interval_p99_us"]
    assert "coordinator" in capsys.readouterr().out


@pytest.mark.slow
def test_over_http_the_frontend_is_measured_too(tmp_path: Path) -> None:
    measured = measurements(tmp_path / "out.json", "--batch", "4", "--step-ms", "1", "--output-len", "50", "--http")
    assert [one["client"] for one in measured] == ["zmq", "http-stream", "http"]
    for one in measured[1:]:
        assert one["tokens"] > 0
        assert set(one["core_share"]) == {"coordinator", "worker", "frontend", "client"}


def test_a_request_that_cannot_run_ends_the_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--batch", "1", "--prompt-len", "5000", "--output-len", "1") == 1
    assert "the prompt has 5000 tokens" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--batch", "1", "--model", "/nowhere") != 0
    assert capsys.readouterr().err.splitlines()[-1].startswith("albireo-run bench pipeline: ")


@pytest.mark.parametrize("flags", [["--batch", "0"], ["--batch", "x"], ["--step-ms", "-1"], ["--duration", "nan"]])
def test_bad_flags_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit):
        bench(*flags)


def test_cpu_seconds_are_those_of_the_kernel() -> None:
    before = cpu_seconds(os.getpid())
    spent = sum(os.times()[:2])
    assert before <= spent + 0.05
    assert cpu_seconds(os.getpid()) >= before
