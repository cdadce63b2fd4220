"""How other commands find an engine and what it recorded."""

import os
from pathlib import Path

import pytest

from albireo.engine_file import EngineInfo, find_engines, leave_flight_record, write_engine_file
from albireo.shm import flight, segment
from albireo.shm.flight import Part


def make_flight(name: str) -> int:
    fd = segment.create(name, flight.flight_bytes())
    flight.initialise(fd, name)
    recorder = flight.FlightRecorder(fd, 0, os.getpid(), lambda: 0)
    recorder.record(Part.FORWARD, 4, 100, 200)
    return fd


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    (tmp_path / "albireo-x").mkdir()
    return tmp_path


def test_a_running_engine_is_found_and_its_records_are_read(parent: Path) -> None:
    fds = {name: make_flight(name) for name in ("coordinator-0", "worker-0")}
    info = EngineInfo(os.getpid(), "1", "demo", "127.0.0.1", 8000, "http://127.0.0.1:8000", fds)
    write_engine_file(str(parent / "albireo-x"), info)
    assert find_engines() == [info]
    logs = info.read_flight()
    assert [log.name for log in logs] == ["coordinator-0", "worker-0"]
    assert [log.records["step"].tolist() for log in logs] == [[4], [4]]
    for fd in fds.values():
        os.close(fd)
    with pytest.raises(segment.SegmentError, match="cannot read coordinator-0 of the engine with pid"):
        info.read_flight()


def test_dead_engines_and_other_files_are_passed_over(parent: Path) -> None:
    write_engine_file(
        str(parent / "albireo-x"), EngineInfo(2**22 + 1, "1", "demo", "127.0.0.1", 8000, "http://127.0.0.1:8000", {})
    )
    (parent / "albireo-y").mkdir()
    (parent / "albireo-y" / "engine.json").write_text("{}")
    assert find_engines() == []


def test_a_crashed_engine_leaves_its_last_steps(parent: Path) -> None:
    fd = make_flight("worker-0")
    for number in range(7):
        (parent / f"albireo-flight-20200101-00000{number}-1.npz").touch()
    path = leave_flight_record({"worker-0": fd})
    os.close(fd)
    (log,) = flight.load(path)
    assert (log.name, log.records["part"].tolist()) == ("worker-0", [Part.FORWARD])
    old = [path.name[23:30] for path in sorted(parent.glob("*-1.npz"))]
    assert old == ["-000003", "-000004", "-000005", "-000006"], "with the new one, five"


def test_replicas_that_die_in_the_same_second_leave_a_record_each(parent: Path) -> None:
    names = ["worker-0", "worker-1"]
    fds = [make_flight(name) for name in names]
    paths = [leave_flight_record({name: fd}, number) for number, (name, fd) in enumerate(zip(names, fds, strict=True))]
    for fd in fds:
        os.close(fd)
    assert [log.name for path in paths for log in flight.load(path)] == names
