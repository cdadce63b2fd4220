"""Finding an engine, and following it without losing a record."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from albireo.engine_file import EngineInfo, write_engine_file
from albireo.shm import flight, segment
from albireo.shm.flight import Part
from albireo.trace.source import TraceError, choose_engine, follow


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    return tmp_path


def add_engine(parent: Path, port: int) -> EngineInfo:
    info = EngineInfo(os.getpid(), "1", "demo", "127.0.0.1", port, f"http://127.0.0.1:{port}", {})
    (parent / f"albireo-{port}").mkdir()
    write_engine_file(str(parent / f"albireo-{port}"), info)
    return info


def test_no_engine_is_an_error_that_says_how_to_start_one(parent: Path) -> None:
    with pytest.raises(TraceError, match="start one with `albireo-run serve`"):
        choose_engine(None, None)


def test_the_only_engine_is_taken_and_of_several_the_one_that_is_named(parent: Path) -> None:
    first = add_engine(parent, 8001)
    assert choose_engine(None, None) == first
    second = add_engine(parent, 8002)
    assert choose_engine(8002, None) == second
    with pytest.raises(TraceError, match=r"choose one: demo \(--port 8001, --pid \d+\), demo \(--port 8002"):
        choose_engine(None, os.getpid())
    with pytest.raises(TraceError, match=r"no engine with this --port or --pid; these run: demo \(--port 8001"):
        choose_engine(8003, None)


class Writer:
    """Stands in for the clock and for sleeping: time passes as records are written."""

    def __init__(self, per_sleep: list[int]) -> None:
        self.fd = segment.create("flight", flight.flight_bytes())
        flight.initialise(self.fd, "worker-0")
        self.recorder = flight.FlightRecorder(self.fd, 0, 1, lambda: 0)
        self.per_sleep = per_sleep
        self.now_ns = 0
        self.step = 0

    def write(self, count: int) -> None:
        for _ in range(count):
            self.step += 1
            self.recorder.record(Part.FORWARD, self.step, self.now_ns, self.now_ns + 1)

    def sleep(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)
        if not self.per_sleep:
            raise KeyboardInterrupt
        self.write(self.per_sleep.pop(0))


@pytest.fixture
def writer() -> Iterator[Writer]:
    writer = Writer([])
    yield writer
    os.close(writer.fd)


def followed(writer: Writer, per_sleep: list[int], seconds: float) -> flight.FlightLog:
    writer.per_sleep = per_sleep
    recording = follow([flight.FlightReader(writer.fd)], seconds, lambda: writer.now_ns, writer.sleep)
    assert recording.begin_ns == 0
    return recording.logs[0]


def test_following_gives_every_record_once_even_more_than_a_ring_holds(writer: Writer) -> None:
    writer.write(10)
    log = followed(writer, [40_000, 0, 40_000, 5], seconds=0.8)
    assert log.num_lost == 0
    assert log.records["step"].tolist() == list(range(1, 80_016))


def test_a_reader_that_was_too_slow_tells_what_it_lost(writer: Writer) -> None:
    writer.write(10)
    log = followed(writer, [5, flight.NUM_RECORDS + 100, 3], seconds=0.6)
    assert log.records["step"].tolist() == list(range(log.num_lost + 1, writer.step + 1))
    assert log.num_lost == 10 + 5 + 102


def test_an_interrupt_ends_it_early_with_what_there_is(writer: Writer) -> None:
    assert followed(writer, [3], seconds=60).records.size == 3
