"""`/engine/events`: what it says is what shared memory has, and it costs and ends as it should."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fakes import tokens_reply, wait_for
from frontend_server import MODEL, FrontendServer

from albireo import limits
from albireo.config import SegmentFds
from albireo.frontend import engine_events
from albireo.frontend.engine_snapshot import MAX_RECORDS, Snapshots
from albireo.shm import flight, segment
from albireo.shm.flight import FlightReader, FlightRecorder, Part
from albireo.shm.layout import ENGINE_STATS
from albireo.shm.stats import initialise, stats_bytes

NAMES = ("frontend-0", "coordinator-0", "worker-0")
FIELDS = ("part", "step", "begin_ns", "duration_ns", "num_rows")
NOW_NS = 5_000_000_000_123


@pytest.fixture
def fds() -> Iterator[dict[str, int]]:
    found = {}
    for name in NAMES:
        found[name] = segment.create(name, flight.flight_bytes())
        flight.initialise(found[name], name)
    yield found
    for fd in found.values():
        os.close(fd)


@pytest.fixture
def recorders(fds: dict[str, int]) -> dict[str, FlightRecorder]:
    return {name: FlightRecorder(fd, 0, 1, lambda: 0) for name, fd in fds.items()}


@pytest.fixture
def snapshots(fds: dict[str, int]) -> Snapshots:
    return Snapshots([np.zeros(1, ENGINE_STATS)], fds.values(), lambda: NOW_NS)


def rows(snapshots: Snapshots) -> dict[str, list[tuple[int, ...]]]:
    """The next event's records by process: (part, step, begin, duration, rows)."""
    event = snapshots.event()
    columns = {each.process: [getattr(each, field) for field in FIELDS] for each in event.records}
    return {process: list(zip(*each, strict=True)) for process, each in columns.items()}


def test_an_event_s_records_are_those_of_the_flight_recorder(
    snapshots: Snapshots, fds: dict[str, int], recorders: dict[str, FlightRecorder]
) -> None:
    for step in range(5):
        begin_ns = NOW_NS - 1_000_000 + step * 1_000
        recorders["coordinator-0"].record(Part.SCHEDULE, step, begin_ns, begin_ns + 300, 7)
        recorders["worker-0"].record(Part.FORWARD, step, begin_ns + 400, begin_ns + 900, 7)
    event = snapshots.event()
    assert [each.process for each in event.records] == list(NAMES)
    for each in event.records:
        recorded = FlightReader(fds[each.process]).read().records
        assert [each.part, each.step, each.num_rows] == [
            recorded[name].tolist() for name in ("part", "step", "num_rows")
        ]
        assert np.array_equal(np.array(each.begin_ns) + event.time_us * 1_000, recorded["begin_ns"])
        assert np.array_equal(each.duration_ns, recorded["end_ns"] - recorded["begin_ns"])
    assert event.num_left_out == 0


def test_each_record_is_told_once(snapshots: Snapshots, recorders: dict[str, FlightRecorder]) -> None:
    worker = recorders["worker-0"]
    worker.record(Part.FORWARD, 1, 0, 10)
    assert [row[1] for row in rows(snapshots)["worker-0"]] == [1]
    assert rows(snapshots)["worker-0"] == []
    worker.record(Part.FORWARD, 2, 20, 30)
    assert [row[1] for row in rows(snapshots)["worker-0"]] == [2]
    snapshots.forget()
    assert [row[1] for row in rows(snapshots)["worker-0"]] == [1, 2]


def test_of_many_records_the_newest_of_all_processes_are_told_and_the_others_counted(
    snapshots: Snapshots, recorders: dict[str, FlightRecorder]
) -> None:
    snapshots.event()
    for step in range(MAX_RECORDS):
        recorders["frontend-0"].record(Part.SEND, step, 2 * step, 2 * step)
        recorders["worker-0"].record(Part.FORWARD, step, 2 * step + 1, 2 * step + 1)
    event = snapshots.event()
    told = {each.process: each.step for each in event.records}
    newest = list(range(MAX_RECORDS // 2, MAX_RECORDS))
    assert told == {"frontend-0": newest, "coordinator-0": [], "worker-0": newest}
    assert event.num_left_out == MAX_RECORDS


def test_collectives_are_left_out(snapshots: Snapshots, recorders: dict[str, FlightRecorder]) -> None:
    for part in (Part.COLLECTIVE, Part.COLLECTIVE, Part.FORWARD):
        recorders["worker-0"].record(part, 1, 0, 10)
    assert [row[0] for row in rows(snapshots)["worker-0"]] == [Part.FORWARD]


@pytest.fixture
def server(tokenizer_path: Path, run_dir: Path, fds: dict[str, int]) -> Iterator[FrontendServer]:
    stats_fd = segment.create("stats", stats_bytes(1))
    initialise(stats_fd, 1)
    segments = SegmentFds(-1, (), stats_fd, flight=fds)
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74]), segments=segments) as server:
        yield server
    os.close(stats_fd)


def events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, data) as they come."""
    kind = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))


def test_a_watcher_hears_what_there_is_and_then_what_happens(
    server: FrontendServer, recorders: dict[str, FlightRecorder]
) -> None:
    server.stats["num_running"], server.stats["generation_tokens"] = 3, 500
    recorders["worker-0"].record(Part.FORWARD, 41, 0, 10, 3)
    with httpx.stream("GET", server.url + "/engine/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        stream = events(response)
        kind, description = next(stream)
        assert (kind, description["model"], tuple(description["processes"])) == ("description", MODEL, NAMES)
        assert description["parts"][Part.FORWARD] == "forward"
        kind, first = next(stream)
        assert (kind, first["engine"]["num_running"], first["engine"]["generation_tokens"]) == ("engine", 3, 500)
        assert first["records"][2]["step"] == [41]
        server.stats["num_running"] = 0
        recorders["worker-0"].record(Part.SAMPLE, 42, 20, 30, 3)
        _, second = next(stream)
        assert second["sequence"] == first["sequence"] + 1
        assert second["engine"]["num_running"] == 0
        assert second["records"][2]["step"] == [42]


def test_one_watcher_too_many_is_told_to_come_again_and_a_place_is_free_when_one_leaves(server: FrontendServer) -> None:
    with httpx.Client() as client:
        url = server.url + "/engine/events"

        def watch() -> httpx.Response:
            return client.send(client.build_request("GET", url), stream=True)

        watching = [watch() for _ in range(limits.MAX_ENGINE_WATCHERS)]
        assert {response.status_code for response in watching} == {200}
        refused = client.get(url)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) > 0
        watching.pop().close()

        def takes_another() -> bool:
            watching.append(watch())
            return watching[-1].status_code == 200

        wait_for(takes_another)
        for response in watching:
            response.close()


def test_nothing_is_read_while_nobody_watches(server: FrontendServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    event = Snapshots.event

    def counted(snapshots: Snapshots) -> Any:
        made.append(1)
        return event(snapshots)

    monkeypatch.setattr(Snapshots, "event", counted)
    monkeypatch.setattr(engine_events, "INTERVAL_S", 0.01)
    assert httpx.head(server.url + "/engine/events").status_code == 200
    assert not made
    with httpx.stream("GET", server.url + "/engine/events") as response:
        stream = events(response)
        assert [next(stream)[0] for _ in range(3)] == ["description", "engine", "engine"]

    def stands_still() -> bool:
        before = len(made)
        time.sleep(0.1)
        return len(made) == before

    wait_for(stands_still)


def test_the_server_s_end_ends_the_stream(server: FrontendServer) -> None:
    with httpx.stream("GET", server.url + "/engine/events") as response:
        stream = events(response)
        assert next(stream)[0] == "description"
        server.supervisor.stop(server.config.name)
        assert all(kind == "engine" for kind, _ in stream)  # and it is a whole response: no exception
    server.join()
