"""The flight recorder: what was recorded is read back, in order, whatever the writer does meanwhile."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from albireo.shm import flight, layout, segment
from albireo.shm.flight import Part


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        self.now_ns += 10
        return self.now_ns


@pytest.fixture
def fd() -> Iterator[int]:
    fd = segment.create("flight", flight.flight_bytes())
    flight.initialise(fd, "worker-3")
    yield fd
    os.close(fd)


def test_consecutive_marks_leave_no_time_between_the_parts(fd: int) -> None:
    recorder = flight.FlightRecorder(fd, 3, 77, Clock())
    recorder.start(5, num_rows=8)
    recorder.mark(Part.FETCH_PLAN)
    recorder.mark(Part.INPUT_PREP)
    log = flight.FlightReader(fd).read()
    assert (log.name, log.pid, log.num_lost) == ("worker-3", 77, 0)
    assert log.records.tolist() == [(5, 1010, 1020, Part.FETCH_PLAN, 3, 8), (5, 1020, 1030, Part.INPUT_PREP, 3, 8)]


def test_a_part_of_any_time_can_be_recorded(fd: int) -> None:
    recorder = flight.FlightRecorder(fd, 3, 77, Clock())
    recorder.record(Part.EXPOSED, 9, 100, 350, num_rows=2)
    assert flight.FlightReader(fd).read().records.tolist() == [(9, 100, 350, Part.EXPOSED, 3, 2)]


def test_a_full_ring_keeps_the_newest_and_says_how_many_it_lost(fd: int) -> None:
    recorder = flight.FlightRecorder(fd, 0, 77, Clock())
    for step in range(flight.NUM_RECORDS + 100):
        recorder.record(Part.FORWARD, step, 0, 1)
    log = flight.FlightReader(fd).read()
    # two slots less: a writer may be in the middle of the next, or of publishing the last
    assert log.num_lost == 102
    assert np.array_equal(log.records["step"], np.arange(102, flight.NUM_RECORDS + 100))


def test_reading_since_a_number_gives_what_came_after(fd: int) -> None:
    recorder, reader = flight.FlightRecorder(fd, 0, 77, Clock()), flight.FlightReader(fd)
    for step in range(4):
        recorder.record(Part.FORWARD, step, 0, 1)
    seen = reader.num_written
    assert reader.read(seen).records.size == 0
    recorder.record(Part.FORWARD, 4, 0, 1)
    assert reader.read(seen).records["step"].tolist() == [4]


def test_a_restarted_writer_goes_on_behind_the_records_of_the_one_before(fd: int) -> None:
    flight.FlightRecorder(fd, 0, 77, Clock()).record(Part.FORWARD, 1, 0, 1)
    flight.FlightRecorder(fd, 0, 78, Clock()).record(Part.FORWARD, 2, 0, 1)
    log = flight.FlightReader(fd).read()
    assert log.pid == 78
    assert log.records["step"].tolist() == [1, 2]


@pytest.mark.parametrize(("duration_ns", "bucket"), [(0, 0), (1_000, 0), (1_001, 1), (5 * 10**9, 20), (6 * 10**9, 21)])
def test_totals_are_a_histogram_whose_bounds_are_upper_ends(fd: int, duration_ns: int, bucket: int) -> None:
    recorder = flight.FlightRecorder(fd, 0, 77, Clock())
    recorder.record(Part.SAMPLE, 1, 50, 50 + duration_ns)
    totals = flight.FlightReader(fd).totals()
    assert np.flatnonzero(totals["buckets"][Part.SAMPLE]).tolist() == [bucket]
    assert totals["sum_ns"].tolist() == [
        duration_ns if part == Part.SAMPLE else 0 for part in range(layout.NUM_FLIGHT_PARTS)
    ]


def test_every_part_has_its_totals(fd: int) -> None:
    recorder = flight.FlightRecorder(fd, 0, 77, Clock())
    for part in Part:
        recorder.record(part, 1, 0, 10)
    assert flight.FlightReader(fd).totals()["sum_ns"][list(Part)].tolist() == [10] * len(Part)
    assert len(flight.BOUNDS_NS) + 1 == flight.FlightReader(fd).totals()["buckets"].shape[1]


def test_a_reader_cannot_write(fd: int) -> None:
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    reader = flight.FlightReader(read_only)
    os.close(read_only)
    with pytest.raises(ValueError, match="read-only"):
        reader._ring["step"] = 1


def test_a_segment_of_another_kind_is_refused() -> None:
    fd = segment.create("other", flight.flight_bytes())
    with pytest.raises(segment.SegmentError, match="magic"):
        flight.FlightReader(fd)
    os.close(fd)


def test_logs_survive_a_file(fd: int, tmp_path: Path) -> None:
    flight.FlightRecorder(fd, 3, 77, Clock()).record(Part.FORWARD, 9, 100, 350)
    log = flight.FlightReader(fd).read()
    path = tmp_path / "crash.npz"
    flight.dump(str(path), [log])
    (loaded,) = flight.load(str(path))
    assert (loaded.name, loaded.pid, loaded.num_lost) == ("worker-3", 77, 0)
    assert np.array_equal(loaded.records, log.records)
    with pytest.raises(FileExistsError):
        flight.dump(str(path), [log])


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x80\x04K\x01."])
def test_a_file_that_is_no_flight_record_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(segment.SegmentError, match=r"x\.npz is no flight record"):
        flight.load(str(path))


def test_an_archive_of_other_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{"worker-0.1.0": np.zeros(3)})  # type: ignore[arg-type]
    with pytest.raises(segment.SegmentError, match=r"worker-0\.1\.0 holds float64"):
        flight.load(str(tmp_path / "x.npz"))
