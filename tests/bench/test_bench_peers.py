import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_tokenizers import byte_level

REPO = Path(__file__).parents[2]
TOOL = [sys.executable, str(REPO / "tools" / "bench_peers.py")]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def launch(name: str, folder: Path) -> list[str]:
    server = Path(__file__).with_name("bench_fake_server.py")
    return ["--launch", f"{name}={sys.executable} {server} {{model}} {{port}} {folder / name}.pid"]


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def state(pid_file: Path) -> str:
    """One letter, as ps shows it; empty when the process is gone or has not begun."""
    try:
        return Path(f"/proc/{pid_file.read_text()}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.slow
def test_servers_are_measured_in_turns_and_compared_by_the_ratio_of_medians(model: Path) -> None:
    flags = ["--model", str(model), "--workloads", "W1", "--rounds", "2", "--warmup-rounds", "0"]
    servers = [*launch("ours", model), *launch("peer", model)]
    done = subprocess.run(
        [*TOOL, *flags, *servers, "--reference", "peer", "--out", str(model / "result")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    saved = json.loads((model / "result.json").read_text())
    assert [turn["server"] for turn in saved["turns"]] == ["ours", "peer", "peer", "ours"]
    assert all(turn["result"]["total_output_tokens"] == 3 * 128 for turn in saved["turns"])
    speeds: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in saved["turns"]:
        speeds[turn["server"]].append(turn["result"]["output_throughput"])
    ratio = sum(speeds["ours"]) / sum(speeds["peer"])  # of two rounds each, the median is the mean
    report = (model / "result.md").read_text()
    (ours,) = (line for line in report.splitlines() if line.startswith("| W1 | greedy | ours |"))
    (peer,) = (line for line in report.splitlines() if line.startswith("| W1 | greedy | peer |"))
    assert f"**{ratio:.2f}x**" in ours
    assert "x**" not in peer
    assert str(model) not in report
    assert str(REPO) not in report
    assert state(model / "ours.pid") == state(model / "peer.pid") == ""


def test_an_idle_server_is_frozen_and_a_told_stop_leaves_nothing_behind(model: Path) -> None:
    never_healthy = ["--launch", f"slow={sys.executable} -c 'import time; time.sleep(600)' {{port}}"]
    tool = subprocess.Popen(
        [*TOOL, "--model", str(model), *launch("first", model), *never_healthy], stderr=subprocess.PIPE
    )
    try:
        wait_for(lambda: state(model / "first.pid") == "T")
    finally:
        tool.terminate()
        tool.communicate()
    assert tool.returncode == 143
    assert state(model / "first.pid") == ""


def test_a_server_that_does_not_start_is_quoted(model: Path) -> None:
    broken = ["--launch", f"broken={sys.executable} -c 'raise SystemExit(\"no such model\")'"]
    done = subprocess.run([*TOOL, "--model", str(model), *broken], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "broken exited with 1" in done.stderr
    assert "no such model" in done.stderr
