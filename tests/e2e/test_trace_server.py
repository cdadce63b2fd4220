"""`albireo-run trace` on real servers: one that runs, and one that was killed."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from server import Server

pytestmark = pytest.mark.e2e

HOST_PARTS = {"SCHEDULE", "WRITE_PLAN", "CONFIRM", "SEND", "FETCH_PLAN", "INPUT_PREP", "RESULT_WRITE"}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Engines of this test alone are found, and their crash records lie here."""
    (tmp_path / "state").mkdir()
    return {"RUNTIME_DIRECTORY": str(tmp_path), "STATE_DIRECTORY": str(tmp_path / "state")}


def trace(environment: dict[str, str], *arguments: str) -> str:
    """What `albireo-run trace` prints."""
    command = [sys.executable, "-m", "albireo.cli", "trace", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def complete(server: Server, max_tokens: int = 50) -> None:
    server.post(
        "/v1/completions",
        {"model": "albireo-demo", "prompt": "The list", "max_tokens": max_tokens, "ignore_eos": True},
    )


def slices(path: Path) -> list[dict[str, Any]]:
    return [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]


def test_a_trace_of_a_running_server_has_every_process_and_the_steps_in_order(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with Server("--kv-cache-bytes", "16M", env=environment) as server:
        complete(server)
        printed = trace(environment, "--out", str(tmp_path / "t.json"), "--gantt", str(tmp_path / "g.png"))
        assert server.metric("albireo:step_part_seconds_count", process="worker-0", part="forward") >= 50
        assert server.metric("albireo:step_gap_seconds_count") >= 49
    assert re.search(r"steps 1 to 5\d: \d+ with a known period", printed)
    assert (tmp_path / "g.png").stat().st_size > 0
    every = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    names = {event["args"]["name"] for event in every if event["name"] == "process_name"}
    assert names == {"frontend-0", "coordinator-0", "grammar-0", "worker-0"}
    found = slices(tmp_path / "t.json")
    assert {event["name"] for event in found} >= HOST_PARTS | {"FORWARD", "SAMPLE", "EXPOSED"}
    begins = {e["args"]["step"]: e["ts"] for e in found if e["name"] == "FORWARD"}
    assert list(begins) == sorted(begins) == list(range(1, len(begins) + 1))
    assert sorted(begins.values()) == list(begins.values())
    waits = {e["args"]["step"]: e["ts"] + e["dur"] for e in found if e["name"] == "EXPOSED"}
    assert all(waits[step] == pytest.approx(begins[step], abs=0.01) for step in waits), "a gap ends as work begins"
    planned = {e["args"]["step"]: e["ts"] for e in found if e["name"] == "SCHEDULE"}
    confirmed = {e["args"]["step"]: e["ts"] for e in found if e["name"] == "CONFIRM"}
    assert all(planned[step] < begins[step] < confirmed[step] for step in begins)


@pytest.mark.slow
def test_watching_for_a_time_shows_the_steps_of_that_time(environment: dict[str, str]) -> None:
    with Server("--kv-cache-bytes", "16M", env=environment) as server:
        complete(server, 10)
        command = [sys.executable, "-m", "albireo.cli", "trace", "--seconds", "2"]
        watching = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        assert watching.stderr is not None
        assert "watching albireo-demo" in watching.stderr.readline()
        complete(server, 20)
        output, _ = watching.communicate(timeout=60)
        assert watching.returncode == 0
    first = re.match(r"steps (\d+) to ", output)
    assert first is not None
    assert int(first[1]) >= 10


@pytest.mark.slow
def test_a_killed_worker_leaves_a_record_that_trace_reads(environment: dict[str, str], tmp_path: Path) -> None:
    with Server("--kv-cache-bytes", "16M", env=environment) as server:
        complete(server)
        body = {"model": "albireo-demo", "prompt": "x", "max_tokens": 900, "stream": True, "ignore_eos": True}
        request = urllib.request.Request(
            f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            response.readline()
            os.kill(server.children()["albireo-worker-0"], signal.SIGKILL)
            response.read()
    (hint,) = [line for line in server.lines if "albireo-run trace --record" in line]
    path = hint.rpartition("--record ")[2]
    assert Path(path).parent == tmp_path / "state"
    assert "worker-0 FORWARD" in trace(environment, "--record", path, "--out", str(tmp_path / "t.json"))
    assert {event["name"] for event in slices(tmp_path / "t.json")} >= HOST_PARTS
