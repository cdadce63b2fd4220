"""Processes that die or stop in the middle of streams, on a real server: the streams go on with the same tokens."""

import json
import os
import signal
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from server import Server, eventually, processes

pytestmark = pytest.mark.e2e
TIMEOUT_S = 2
NUM_STREAMS = 6
FLAGS = ("--kv-cache-bytes", "64M", "--dtype", "float32", "--worker-timeout", str(TIMEOUT_S))


class StreamError(Exception):
    """The stream ended with an error event."""


def stream(server: Server, seed: int, max_tokens: int = 400, prompt: str | None = None) -> str:
    """Every other one is greedy."""
    body: dict[str, Any] = {
        "model": "albireo-demo", "prompt": prompt or f"Function number {seed}", "max_tokens": max_tokens, "seed": seed,
        "stream": True, "ignore_eos": True, "temperature": float(seed % 2),
    }  # fmt: skip
    request = urllib.request.Request(
        f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    text = ""
    with urllib.request.urlopen(request) as response:
        for line in response:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise StreamError(event["error"]["message"])
                text += event["choices"][0]["text"]
    return text


def under_way(server: Server, num_streams: int = NUM_STREAMS) -> bool:
    return eventually(lambda: server.metric("albireo:num_requests_running") == num_streams)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(*FLAGS) as server:
        yield server


@pytest.fixture(scope="module")
def expected(server: Server) -> list[str]:
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        return list(pool.map(lambda seed: stream(server, seed), range(NUM_STREAMS)))


@pytest.mark.parametrize(
    ("victims", "number"),
    [
        (("worker-0",), signal.SIGKILL),
        (("coordinator-0",), signal.SIGKILL),
        (("coordinator-0", "worker-0"), signal.SIGKILL),
        pytest.param(("worker-0",), signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param(("coordinator-0",), signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param(("worker-0", "grammar-0", "coordinator-0"), signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_streams_go_on_with_the_same_tokens(
    server: Server, expected: list[str], victims: tuple[str, ...], number: signal.Signals
) -> None:
    server.lines.clear()
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        texts = pool.map(lambda seed: stream(server, seed), range(NUM_STREAMS))
        assert under_way(server)
        for victim in victims:
            os.kill(server.children()[f"albireo-{victim}"], number)
        assert list(texts) == expected
    assert any(victims[0] in line and "albireo: " in line for line in server.lines)
    assert eventually(lambda: {f"albireo-{name}" for name in ("worker-0", "coordinator-0", "grammar-0", "frontend-0")}
                      == set(server.children()))  # fmt: skip


@pytest.mark.slow
def test_workers_come_back_though_the_coordinator_stops_when_it_is_told_of_their_loss(
    server: Server, expected: list[str]
) -> None:
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        texts = pool.map(lambda seed: stream(server, seed), range(NUM_STREAMS))
        assert under_way(server)
        children = server.children()
        os.kill(children["albireo-worker-0"], signal.SIGSTOP)
        time.sleep(TIMEOUT_S / 2)
        os.kill(children["albireo-coordinator-0"], signal.SIGSTOP)
        assert list(texts) == expected


def test_an_idle_server_s_dead_are_replaced_too(server: Server, expected: list[str]) -> None:
    for name in ("worker-0", "coordinator-0", "frontend-0"):
        before = server.children()[f"albireo-{name}"]
        os.kill(before, signal.SIGKILL)
        assert eventually(lambda n=name, b=before: server.children().get(f"albireo-{n}", b) != b)
    assert eventually(lambda: _answers(server, expected[0]), timeout_s=60)


def _answers(server: Server, expected: str) -> bool:
    try:
        return stream(server, 0) == expected
    except (urllib.error.URLError, ConnectionError):
        return False


@pytest.mark.slow
def test_a_stream_survives_the_death_of_the_worker_that_is_just_starting(server: Server, expected: list[str]) -> None:
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(stream, server, 1)
        assert under_way(server, 1)
        for _ in range(2):
            before = server.children()["albireo-worker-0"]
            os.kill(before, signal.SIGKILL)
            assert eventually(lambda b=before: server.children().get("albireo-worker-0", b) != b)
        assert text.result() == expected[1]


KILLER = """
    import os, sys, threading, time

    def patch():
        while "albireo.gpu_worker.cpu_device" not in sys.modules or not hasattr(
            sys.modules["albireo.gpu_worker.cpu_device"], "CpuDevice"
        ):
            time.sleep(0.001)
        device = sys.modules["albireo.gpu_worker.cpu_device"].CpuDevice
        execute = device.execute

        def execute_or_die(self, plan, result):
            count = int(plan.header["num_chunk_tokens"][0])
            if {token} in plan.chunk_tokens[:count].tolist():
                os.abort()
            execute(self, plan, result)

        device.execute = execute_or_die

    if "albireo.gpu_worker" in open("/proc/self/cmdline").read():
        threading.Thread(target=patch, daemon=True).start()
"""


def test_a_request_that_kills_the_workers_is_ended_and_the_others_go_on(
    server: Server, expected: list[str], tmp_path: Path
) -> None:
    token = server.post("/tokenize", {"prompt": "ÿ", "add_special_tokens": False})["tokens"][-1]
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(KILLER).replace("{token}", str(token)))
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    with Server(*FLAGS, env={"PYTHONPATH": path}) as frail, ThreadPoolExecutor(NUM_STREAMS + 1) as pool:
        texts = [pool.submit(stream, frail, seed) for seed in range(NUM_STREAMS)]
        assert under_way(frail)
        with pytest.raises((StreamError, urllib.error.HTTPError)):
            stream(frail, 99, prompt="ÿ")
        assert [text.result() for text in texts] == expected
        assert sum("was killed by SIGABRT" in line for line in frail.lines) == 2


@pytest.mark.slow
def test_a_server_that_cannot_keep_a_worker_gives_up_with_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, pathlib\nif pathlib.Path({str(tmp_path / 'broken')!r}).exists() and "
        "'albireo.gpu_worker' in open('/proc/self/cmdline').read(): os._exit(9)\n"
    )
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    with Server(*FLAGS, env={"PYTHONPATH": path}) as server:
        children = set(server.children().values())
        (tmp_path / "broken").touch()
        os.kill(server.children()["albireo-worker-0"], signal.SIGKILL)
        assert server.wait(60) == 1
        assert any("that was too often, stopping everything" in line for line in server.lines)
    assert eventually(lambda: not {pid for pid, _, _ in processes()} & children)


@pytest.mark.slow
def test_a_drain_survives_a_death(server: Server, expected: list[str]) -> None:
    with Server(*FLAGS, "--shutdown-timeout", "60") as ending, ThreadPoolExecutor(NUM_STREAMS) as pool:
        texts = pool.map(lambda seed: stream(ending, seed), range(NUM_STREAMS))
        assert under_way(ending)
        ending.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        os.kill(ending.children()["albireo-worker-0"], signal.SIGKILL)
        assert list(texts) == expected
        assert ending.wait() == 0
