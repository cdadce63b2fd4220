"""`python -m albireo.frontend` as the supervisor starts it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeCoordinator, FakeSupervisor, tokens_reply, wait_for
from frontend_server import NAME, frontend_config

from albireo.config import SegmentFds, encode_config
from albireo.messages import EngineReady, Fatal, Ready
from albireo.shm import flight, request_counts, routes, segment
from albireo.shm.stats import initialise, stats_bytes


class Process:
    """The child, its pipes and its fakes."""

    def __init__(self, run_dir: Path, tokenizer_path: Path, **changes: Any) -> None:
        self.supervisor = FakeSupervisor(str(run_dir))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        stats_fd = segment.create("stats", stats_bytes(1))
        initialise(stats_fd, 1)
        flight_fd = segment.create("flight", flight.flight_bytes())
        flight.initialise(flight_fd, NAME)
        requests_fd = segment.create("requests", request_counts.request_counts_bytes(1))
        request_counts.initialise(requests_fd, 1)
        routes_fd = segment.create("routes", routes.routes_bytes(1))
        routes.initialise(routes_fd, 1)
        segments = SegmentFds(-1, (), stats_fd, requests=requests_fd, routes=routes_fd, flight={NAME: flight_fd})
        config = frontend_config(
            run_dir, tokenizer_path, self.listener.fileno(), stats_fd, segments=segments, **changes
        )
        self.child = subprocess.Popen(
            [sys.executable, "-m", "albireo.frontend"],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE,
            pass_fds=(self.listener.fileno(), stats_fd, flight_fd, requests_fd, routes_fd),
        )  # fmt: skip
        for fd in (stats_fd, flight_fd, requests_fd, routes_fd):
            os.close(fd)
        assert self.child.stdin is not None
        self.child.stdin.write(encode_config(config))
        self.child.stdin.flush()

    def close(self) -> str:
        """Kills what is left; returns the child's log."""
        self.child.kill()
        _, log = self.child.communicate()
        self.listener.close()
        self.supervisor.close()
        return log.decode()


@pytest.fixture
def process(run_dir: Path, tokenizer_path: Path) -> Iterator[Process]:
    with FakeCoordinator(str(run_dir), tokens_reply([74, 75], eos=2)):
        process = Process(run_dir, tokenizer_path)
        yield process
        process.close()


def test_it_serves_ignores_ctrl_c_and_ends_on_sigterm(process: Process) -> None:
    process.supervisor.engine_ready(NAME)
    assert httpx.post(process.url + "/v1/completions", json={"prompt": "x"}).json()["choices"][0]["text"] == "hi"
    process.child.send_signal(signal.SIGINT)
    assert httpx.get(process.url + "/live").status_code == 200
    process.child.terminate()
    assert process.child.wait(60) == 0
    assert process.close() == ""


def test_it_ends_on_stop_before_it_was_ready(process: Process) -> None:
    process.supervisor.stop(NAME)
    assert process.child.wait(60) == 0
    assert not process.supervisor.hears(Ready)


def test_it_dies_with_its_supervisor(process: Process) -> None:
    process.supervisor.engine_ready(NAME)
    assert process.child.stdin is not None
    process.child.stdin.close()
    assert process.child.wait(60) == 1
    process.child.stdin = None


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", "{}", "not a usable tokenizer"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("chat_template.jinja", "{% if %}", "does not compile"),
    ],
)
def test_a_broken_tokenizer_folder_is_one_line_and_exit_code_3(
    run_dir: Path, tokenizer_path: Path, tmp_path: Path, name: str, text: str | None, words: str
) -> None:
    for path in tokenizer_path.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    process = Process(run_dir, tmp_path)
    assert process.child.wait(60) == 3
    wait_for(lambda: process.supervisor.hears(Fatal))
    fatal = process.supervisor.heard[-1]
    assert isinstance(fatal, Fatal)
    assert fatal.exit_code == 3
    assert words in fatal.message
    assert "\n" not in fatal.message
    assert "Traceback" not in process.close()


def test_a_message_that_it_does_not_know_is_fatal(process: Process) -> None:
    process.supervisor.tell(NAME, EngineReady(0))
    assert process.child.wait(60) == 1
    wait_for(lambda: process.supervisor.hears(Fatal))
    assert "EngineReady" in process.close() or "num_kv_blocks" in str(process.supervisor.heard[-1])
