"""`--replicas R` on real processes: who gets which request, and streams that go on elsewhere when a replica is down.

On the null device a token depends on the request's seed and on its position alone, so a stream that goes on is the
undisturbed one or it is wrong.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from server import Server, eventually
from test_survival import stream

pytestmark = pytest.mark.e2e
REPLICAS = 2
NUM_STREAMS = 8
FLAGS = ("--device", "null", "--null-step-ms", "5", "--replicas", str(REPLICAS), "--worker-timeout", "2")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(*FLAGS) as server:
        yield server


def running(server: Server) -> list[float]:
    return [server.metric("albireo:num_requests_running", engine=str(number)) for number in range(REPLICAS)]


def finished(server: Server) -> list[float]:
    return [
        server.metric("albireo:request_success_total", engine=str(number), finished_reason="length")
        for number in range(REPLICAS)
    ]


def test_requests_are_shared_out_and_counted_where_they_ran(server: Server) -> None:
    before = finished(server)
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        texts = pool.map(lambda seed: stream(server, seed, 300), range(NUM_STREAMS))
        assert eventually(lambda: running(server) == [NUM_STREAMS / REPLICAS] * REPLICAS)
        assert len(set(texts)) == NUM_STREAMS
    assert [now - then for now, then in zip(finished(server), before, strict=True)] == [NUM_STREAMS / REPLICAS] * 2


def test_prompts_with_the_same_beginning_meet(server: Server) -> None:
    before = finished(server)
    for number in range(6):
        stream(server, number, 5, prompt="The same beginning, long enough to be known again. " * 12 + str(number))
    assert sorted(now - then for now, then in zip(finished(server), before, strict=True)) == [0, 6]
    hits = [server.metric("albireo:prefix_cache_hits_total", engine=str(number)) for number in range(REPLICAS)]
    assert max(hits) > 0


@pytest.mark.parametrize("victim", ["worker-1", pytest.param("coordinator-0", marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_streams_of_a_replica_that_is_down_go_on_with_the_others(
    server: Server, victim: str, number: signal.Signals
) -> None:
    expected = [stream(server, seed, 250) for seed in range(NUM_STREAMS)]
    server.lines.clear()
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        texts = pool.map(lambda seed: stream(server, seed, 250), range(NUM_STREAMS))
        assert eventually(lambda: sum(running(server)) == NUM_STREAMS)
        os.kill(server.children()[f"albireo-{victim}"], number)
        assert list(texts) == expected
    moved = [line for line in server.lines if "go on with" in line]
    assert moved, server.lines
    names = {f"albireo-{name}-{number}" for name in ("worker", "coordinator") for number in range(REPLICAS)}
    assert eventually(lambda: set(server.children()) == names | {"albireo-frontend-0"})
    # the one that came back takes requests
    assert eventually(lambda: all(is_taken(server, replica) for replica in range(REPLICAS)))


def is_taken(server: Server, replica: int) -> bool:
    before = finished(server)[replica]
    for seed in range(REPLICAS):
        stream(server, seed, 2)
    return finished(server)[replica] > before


def test_ranks_that_do_not_fit_are_refused_with_both_flags() -> None:
    command = [sys.executable, "-m", "albireo.cli", "serve", "--port", "0", "--replicas", "40", "-tp", "2"]
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--tensor-parallel-size 2 with --replicas 40 needs a thread for each rank" in done.stderr
