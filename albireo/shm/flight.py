"""The flight recorder: every process notes what it did and when, in a ring of its own in shared memory.

Always on. A note is about 0.7 microseconds of Python: two clock reads, one `struct.pack_into`, a histogram's bucket.
The ring outlives its writer, since the supervisor holds the segment: the last steps can be read after a crash.
"""

import struct
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from albireo.shm import layout
from albireo.shm.fence import fence
from albireo.shm.segment import Segment, SegmentError

NUM_RECORDS: Final = 1 << 16
"""Records in a ring (2 MiB): some 5,000 steps and more; with several ranks, where each collective is one, fewer."""

BOUNDS_NS: Final = tuple(digit * 10**power for power in range(3, 10) for digit in (1, 2, 5))
"""Upper ends of the histograms' buckets, 1 microsecond to 5 seconds."""


class Part(IntEnum):
    """What a process was doing. In the order of a step's life."""

    RECEIVE = 1
    """Reading messages: requests in the coordinator, tokens in a frontend."""
    SCHEDULE = 2
    """Coordinator: deciding the next step and filling its plan slot in place."""
    WRITE_PLAN = 3
    """Coordinator: publishing the filled slot."""
    DOORBELL = 4
    """Waking the other side over ZeroMQ."""
    FETCH_PLAN = 5
    """Worker: from seeing the plan to its changes being applied to the request state."""
    INPUT_PREP = 6
    """Worker: from plan and state to the arrays of the forward pass."""
    FORWARD = 7
    """Device: the model, LM head included."""
    COLLECTIVE = 8
    """Device: waiting for and exchanging with the other ranks; lies within FORWARD or SAMPLE."""
    SAMPLE = 9
    """Device: from logits to tokens, stop check and state update included."""
    RESULT_WRITE = 10
    """Worker: filling and publishing the token ring's slot."""
    CONFIRM = 11
    """Coordinator: taking a step's results into the requests' state, ending requests."""
    DETOKENISE = 12
    """Frontend: from a step's token ids to its requests' texts."""
    SEND = 13
    """Coordinator: a step's messages to the frontends. Frontend: formatting and writing to the clients."""
    EXPOSED = 14
    """Coordinator's account of a gap: no device work between two steps, though there were requests to work on."""
    IDLE = 15
    """Coordinator: there was no request at all."""
    COMPILE = 16
    """Grammar process: a request's grammar, from its arrival to the answer, whatever else went on beside it."""
    MASK = 17
    """Grammar process: from a step's confirmed tokens to the masks for the next ones."""
    SWAP = 18
    """Device: copying KV blocks to host memory or back, before the step's forward pass."""


DEVICE_PARTS: Final = (Part.FORWARD, Part.SAMPLE)
"""What the device is there for; everything else is hidden behind these, or exposed."""


class Recorder(Protocol):
    """What a process's parts are reported to."""

    step: int
    num_rows: int
    """As of the last `start`."""

    def start(self, step: int, num_rows: int = 0) -> int:
        """A step's consecutive parts begin now; returns the time."""

    def mark(self, part: Part) -> int:
        """From `start` or the last mark until now it was `part`; returns the time."""

    def record(self, part: Part, step: int, begin_ns: int, end_ns: int, num_rows: int = 0) -> None:
        """Any stretch of time."""


def flight_bytes() -> int:
    """Size of a flight segment."""
    return _RECORDS_OFFSET + NUM_RECORDS * layout.FLIGHT_RECORD.itemsize


_HEAD_OFFSET: Final = layout.SEGMENT_HEADER.itemsize
_TOTALS_OFFSET: Final = _HEAD_OFFSET + layout.FLIGHT_HEAD.itemsize
_RECORDS_OFFSET: Final = _TOTALS_OFFSET + layout.NUM_FLIGHT_PARTS * layout.FLIGHT_TOTALS.itemsize
_FIELDS: Final = {"num_slots": NUM_RECORDS, "slot_bytes": layout.FLIGHT_RECORD.itemsize}


def initialise(fd: int, name: str) -> None:
    """Writes the header; the supervisor's part. `name`: the process's, like `worker-0`."""
    segment = Segment(fd)
    segment.write_header(layout.KIND_FLIGHT, **_FIELDS)
    segment.array(layout.FLIGHT_HEAD, _HEAD_OFFSET, 1)["name"] = name.encode()


class FlightRecorder:
    """The writing end, used by the process's main thread alone."""

    def __init__(self, fd: int, rank: int, pid: int, clock_ns: Callable[[], int]) -> None:
        segment = Segment(fd)
        segment.check_header(layout.KIND_FLIGHT, **_FIELDS)
        head = segment.array(layout.FLIGHT_HEAD, _HEAD_OFFSET, 1)
        head["pid"] = pid
        # memoryviews and struct: a third of what an assignment to a numpy record takes
        data = segment.data.data
        self._records = data[_RECORDS_OFFSET:]
        self._head = data[_HEAD_OFFSET:_TOTALS_OFFSET].cast("Q")
        self._totals = data[_TOTALS_OFFSET:_RECORDS_OFFSET].cast("Q")
        self._written: int = self._head[0]
        self._rank = rank
        self._clock_ns = clock_ns
        self.step = self.num_rows = self._last_ns = 0

    def beat(self) -> None:
        """The process's loop turns: to be called at least twice a second, idle or not."""
        self._head[_BEAT] = self._clock_ns()

    def start(self, step: int, num_rows: int = 0) -> int:
        self.step, self.num_rows = step, num_rows
        self._last_ns = now_ns = self._clock_ns()
        return now_ns

    def mark(self, part: Part) -> int:
        begin_ns, now_ns = self._last_ns, self._clock_ns()
        self.record(part, self.step, begin_ns, now_ns, self.num_rows)
        self._last_ns = now_ns
        return now_ns

    def record(self, part: Part, step: int, begin_ns: int, end_ns: int, num_rows: int = 0) -> None:
        written, duration_ns = self._written, max(0, end_ns - begin_ns)
        offset = written % NUM_RECORDS * _RECORD_BYTES
        _pack(self._records, offset, step, begin_ns, end_ns, part, self._rank, num_rows)
        totals, first = self._totals, part * _TOTALS_WORDS
        totals[first + bisect_left(BOUNDS_NS, duration_ns)] += 1
        totals[first + layout.NUM_FLIGHT_BUCKETS] += duration_ns
        fence()
        self._written = self._head[0] = written + 1


_pack = struct.Struct("<QqqHHI").pack_into
_RECORD_BYTES: Final = layout.FLIGHT_RECORD.itemsize
_TOTALS_WORDS: Final = layout.FLIGHT_TOTALS.itemsize // 8
_BEAT: Final = layout.FLIGHT_HEAD.fields["beat_ns"][1] // 8  # type: ignore[index]


def map_beat(fd: int) -> "memoryview[int]":
    """A process's `beat_ns`, as `[0]`; the supervisor reads it, and sets it to 0 for a process that takes the place."""
    offset = _HEAD_OFFSET + 8 * _BEAT
    return Segment(fd).data.data[offset : offset + 8].cast("q")


class Unrecorded:
    """A recorder that forgets: for parts that run alone, in tests and tools."""

    def __init__(self, clock_ns: Callable[[], int] = lambda: 0) -> None:
        self.step = self.num_rows = 0
        self._clock_ns = clock_ns

    def start(self, step: int, num_rows: int = 0) -> int:
        return self._clock_ns()

    def mark(self, part: Part) -> int:
        return self._clock_ns()

    def record(self, part: Part, step: int, begin_ns: int, end_ns: int, num_rows: int = 0) -> None:
        pass


@dataclass(frozen=True, slots=True)
class FlightLog:
    """What one process has recorded, oldest first."""

    name: str
    """The process's, like `worker-0`."""
    pid: int
    records: npt.NDArray[Any]
    """FLIGHT_RECORD[n], n <= NUM_RECORDS, by end time."""
    num_lost: int
    """Older ones that the ring has no more."""


class FlightReader:
    """The reading end: any process, at any time, also while the writer writes and after it died."""

    def __init__(self, fd: int) -> None:
        """Raises SegmentError when this is no flight segment of this version."""
        segment = Segment(fd, writable=False)
        segment.check_header(layout.KIND_FLIGHT, **_FIELDS)
        self._head = segment.array(layout.FLIGHT_HEAD, _HEAD_OFFSET, 1)
        self._totals = segment.array(layout.FLIGHT_TOTALS, _TOTALS_OFFSET, layout.NUM_FLIGHT_PARTS)
        self._ring = segment.array(layout.FLIGHT_RECORD, _RECORDS_OFFSET, NUM_RECORDS)

    @property
    def name(self) -> str:
        return bytes(self._head["name"][0]).decode()

    def read(self, since: int = 0, most: int = NUM_RECORDS) -> FlightLog:
        """A consistent copy of the newest `most` records from number `since` on: those that were overwritten while it
        was made are left out."""
        end = int(self._head["written"][0])
        first = max(since, end - most)
        fence()
        records = self._ring[np.arange(first, max(first, end)) % NUM_RECORDS]
        fence()
        # the slot behind the last whole record may be half written, on weakly ordered CPUs the one before it too
        whole = max(first, int(self._head["written"][0]) - NUM_RECORDS + 2)
        return FlightLog(self.name, int(self._head["pid"][0]), records[whole - first :], whole - since)

    @property
    def num_written(self) -> int:
        """Records ever written: the number of the next one."""
        return int(self._head["written"][0])

    def totals(self) -> npt.NDArray[Any]:
        """A copy of FLIGHT_TOTALS[NUM_FLIGHT_PARTS], by Part."""
        return self._totals.copy()


def dump(path: str, logs: list[FlightLog]) -> None:
    """Writes logs to a file that `load` reads: an `.npz` of one array of records per process."""
    with Path(path).open("xb") as file:
        np.savez_compressed(file, **{f"{log.name}.{log.pid}.{log.num_lost}": log.records for log in logs})  # type: ignore[arg-type]


def load(path: str) -> list[FlightLog]:
    """Reads what `dump` wrote. Raises SegmentError when the file is something else, OSError when it cannot be read."""
    logs = []
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                name, pid, num_lost = key.rsplit(".", 2)
                records = arrays[key]
                if records.dtype != layout.FLIGHT_RECORD or records.ndim != 1:
                    raise ValueError(f"{key} holds {records.dtype}")
                logs.append(FlightLog(name, int(pid), records, int(num_lost)))
    except (ValueError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SegmentError(f"{path} is no flight record of this version: {error}") from error
    return logs
