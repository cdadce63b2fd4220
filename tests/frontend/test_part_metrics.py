"""The flight recorders' histograms on /metrics."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fakes import tokens_reply
from frontend_server import MODEL, FrontendServer

from albireo.config import SegmentFds
from albireo.shm import flight, segment
from albireo.shm.flight import Part
from albireo.shm.stats import initialise, stats_bytes


@pytest.fixture
def fds() -> Iterator[dict[str, int]]:
    found = {}
    for name in ("frontend-0", "coordinator-0", "worker-0"):
        found[name] = segment.create(name, flight.flight_bytes())
        flight.initialise(found[name], name)
    yield found
    for fd in found.values():
        os.close(fd)


@pytest.fixture
def server(tokenizer_path: Path, run_dir: Path, fds: dict[str, int]) -> Iterator[FrontendServer]:
    stats_fd = segment.create("stats", stats_bytes(1))
    initialise(stats_fd, 1)
    segments = SegmentFds(-1, (), stats_fd, flight=fds)
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74]), segments=segments) as server:
        yield server
    os.close(stats_fd)


def lines(server: FrontendServer, name: str) -> dict[str, float]:
    """Values of a metric's samples by the rest of their line."""
    text = httpx.get(server.url + "/metrics").text
    samples = (line.rpartition(" ") for line in text.splitlines() if line.startswith(name))
    return {head.removeprefix(name): float(value) for head, _, value in samples}


def test_parts_of_all_processes_are_histograms_in_seconds(server: FrontendServer, fds: dict[str, int]) -> None:
    worker = flight.FlightRecorder(fds["worker-0"], 0, 1, lambda: 0)
    for length_ns in (1_500_000, 1_500_000, 40_000_000):
        worker.record(Part.FORWARD, 1, 0, length_ns)
    labels = f'engine="0",model_name="{MODEL}",part="forward",process="worker-0"'
    buckets = lines(server, "albireo:step_part_seconds_bucket")
    assert buckets[f'{{engine="0",le="0.001",model_name="{MODEL}",part="forward",process="worker-0"}}'] == 0
    assert buckets[f'{{engine="0",le="0.002",model_name="{MODEL}",part="forward",process="worker-0"}}'] == 2
    assert buckets[f'{{engine="0",le="+Inf",model_name="{MODEL}",part="forward",process="worker-0"}}'] == 3
    assert lines(server, "albireo:step_part_seconds_sum") == {f"{{{labels}}}": pytest.approx(0.043)}


def test_exposed_gaps_are_a_histogram_of_their_own_and_idle_time_is_none(
    server: FrontendServer, fds: dict[str, int]
) -> None:
    coordinator = flight.FlightRecorder(fds["coordinator-0"], 0, 1, lambda: 0)
    coordinator.record(Part.EXPOSED, 1, 0, 200_000)
    coordinator.record(Part.IDLE, 2, 0, 5_000_000_000)
    assert list(lines(server, "albireo:step_gap_seconds_count").values()) == [1]
    assert list(lines(server, "albireo:step_gap_seconds_sum").values()) == [pytest.approx(0.0002)]
    assert lines(server, "albireo:step_part_seconds_count") == {}
