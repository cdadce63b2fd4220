"""Ranks as real processes: the same answers for every degree, and a rank that dies or hangs is named and replaced."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint
from server import Server, eventually

TIMEOUT_S = 2
PROMPT = "Two ranks share a model, and"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("ranks") / "qwen3", "qwen3")


def start(path: Path, size: int, *arguments: str) -> Server:
    flags = ["--model", str(path), "-tp", str(size), "--cpu-threads", str(max(size, 2)), "--kv-cache-bytes", "64M"]
    return Server(*flags, "--max-model-len", "512", *arguments)


def answers(server: Server) -> list[Any]:
    """Greedy, seeded and constrained completions with logprobs."""
    requests: list[dict[str, Any]] = [
        {"temperature": 0, "logprobs": 3},
        {"temperature": 1.0, "seed": 5, "top_p": 0.9},
        {"temperature": 1.0, "seed": 6, "top_k": 30, "min_p": 0.01, "frequency_penalty": 0.5},
        {"temperature": 1.2, "seed": 7, "logit_bias": {"40": 5}, "min_tokens": 5, "logprobs": 0},
        {"temperature": 0, "echo": True, "logprobs": 1, "max_tokens": 1},
    ]
    results = []
    for request in requests:
        body = {"model": str(server._arguments[1]), "prompt": PROMPT, "max_tokens": 24, "ignore_eos": True}
        choice = server.post("/v1/completions", body | request)["choices"][0]
        logprobs = choice["logprobs"]
        values = None if logprobs is None else [round(x, 2) for x in logprobs["token_logprobs"] if x is not None]
        results.append((choice["text"], values))
    return results


@pytest.mark.slow
def test_two_ranks_answer_as_one_does_in_every_mode_and_over_gloo(path: Path) -> None:
    with start(path, 1) as server:
        expected = answers(server)
    for arguments in ([], ["--sampling-mode", "gathered"], ["--sampling-mode", "sequence-parallel"]):
        with start(path, 2, *arguments) as server:
            assert answers(server) == expected
            assert "device 2 x cpu" in "\n".join(server.lines)
    with start(path, 2, "--collectives", "gloo") as server:
        assert answers(server) == expected
    assert server.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 8])
def test_four_and_eight_ranks_answer_as_one_does(path: Path, size: int) -> None:
    wide = write_checkpoint(path.parent / "wide", "qwen3", num_attention_heads=8)
    with start(wide, 1) as server:
        expected = answers(server)
    with start(wide, size) as server:
        assert answers(server) == expected
    assert server.wait() == 0


@pytest.fixture
def server(path: Path) -> Iterator[Server]:
    with start(path, 2, "--worker-timeout", str(TIMEOUT_S)) as server:
        yield server


def stream_forever(server: Server, times: int = 100) -> list[int]:
    """A request, again and again, that keeps the engine busy; its end is not waited for. The numbers of its tokens."""
    import threading

    body = {"prompt": PROMPT, "max_tokens": 400, "ignore_eos": True}
    finished: list[int] = []

    def ask() -> None:
        try:
            for _ in range(times):
                finished.append(server.post("/v1/completions", body)["usage"]["completion_tokens"])
        except OSError:
            pass

    threading.Thread(target=ask, daemon=True).start()
    assert eventually(lambda: server.metric("albireo:num_requests_running") > 0)
    return finished


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_stopped_rank_is_named_within_the_timeout_and_nobody_spins_meanwhile(server: Server) -> None:
    stream_forever(server)
    children = server.children()
    stopped = children.pop("albireo-worker-1")
    os.kill(stopped, signal.SIGSTOP)
    time.sleep(0.3)
    before = {name: cpu_seconds(pid) for name, pid in children.items()}
    begin = time.monotonic()
    time.sleep(1)
    used = {name: cpu_seconds(pid) - before[name] for name, pid in children.items()}
    elapsed = time.monotonic() - begin
    assert max(used.values()) < 0.3 * elapsed, used
    assert eventually(lambda: any("has not moved" in line for line in server.lines))
    (line,) = [line for line in server.lines if "has not moved" in line]
    assert "worker-1 has not moved for 2." in line
    assert "awaited by worker-0 in all-" in line
    assert " of step " in line
    answers(server)


@pytest.mark.slow
def test_a_rank_that_stops_while_streams_finish_is_replaced_and_they_finish(path: Path) -> None:
    with start(path, 2, "--worker-timeout", str(TIMEOUT_S), "--shutdown-timeout", "600") as server:
        finished = stream_forever(server, 1)
        server.process.send_signal(signal.SIGTERM)
        os.kill(server.children()["albireo-worker-1"], signal.SIGSTOP)
        assert server.wait(60) == 0
        assert finished == [400]
    assert any("worker-1 has not moved" in line for line in server.lines)


def test_a_killed_rank_is_named_with_its_step(server: Server) -> None:
    stream_forever(server)
    os.kill(server.children()["albireo-worker-1"], signal.SIGKILL)
    assert eventually(lambda: any("was killed by" in line for line in server.lines))
    (line,) = [line for line in server.lines if "was killed by" in line]
    assert "albireo: worker-1 (pid" in line
    assert "was killed by SIGKILL" in line
    assert " step " in line


@pytest.mark.slow
def test_an_idle_rank_that_stops_is_named_too(server: Server) -> None:
    os.kill(server.children()["albireo-worker-0"], signal.SIGSTOP)
    assert eventually(lambda: any("worker-0 has not moved" in line for line in server.lines))
    answers(server)
