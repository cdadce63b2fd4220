"""What `/engine/events` says a few times a second: the engine's gauges and counters, and the newest flight records.

Records go as columns, so that nothing loops over them in Python. Times are CLOCK_MONOTONIC: the event's own in whole
microseconds and the records' in nanoseconds before it, since JavaScript's numbers hold no nanoseconds since a boot of
more than 104 days ago.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from albireo.shm.flight import NUM_RECORDS, FlightReader, Part

MAX_RECORDS: Final = 2_000
"""In one event, of all processes together: 50 kB. Ten steps of the fastest engine fit a hundredfold."""

_MOST_READ: Final = NUM_RECORDS // 4
"""Of one process in one event: where several ranks work, most of its records are COLLECTIVE."""

_GAUGES: Final = (
    "num_running", "num_waiting", "num_blocks", "num_blocks_used", "num_blocks_cached", "prefix_cache_queries",
    "prefix_cache_hits", "prompt_tokens", "generation_tokens", "num_preemptions", "num_confirmed_steps",
    "step_device_ns", "step_exposed_ns",
)  # fmt: skip


class Columns(Struct, frozen=True):
    """Records of one process, as equally long lists: FLIGHT_RECORD's fields, by end time."""

    process: str
    part: list[int]
    step: list[int]
    begin_ns: list[int]
    """Relative to the event's `time_us`: negative."""
    duration_ns: list[int]
    num_rows: list[int]


class EngineEvent(Struct, frozen=True):
    """One event's data."""

    sequence: int
    """Counts up by one; a client that reads too slowly misses some."""
    time_us: int
    engine: dict[str, int]
    """Fields of ENGINE_STATS, all replicas' together: gauges, and counters since the start."""
    records: list[Columns]
    num_left_out: int
    """Older records since the last event that are not here."""


class Description(Struct, frozen=True):
    """The first event's data."""

    model: str
    interval_ms: int
    processes: list[str]
    parts: list[str]
    """Names by `Columns.part`; the first is of none."""
    device_parts: list[int]
    """What the device does; all else is hidden behind it, or exposed."""


class Snapshots:
    """Makes events; remembers which records the last one reached."""

    def __init__(
        self, stats: Sequence[npt.NDArray[Any]], flight_fds: Iterable[int], clock_ns: Callable[[], int]
    ) -> None:
        """`stats`: of each replica, ENGINE_STATS[1]. `flight_fds`: every process's flight segment. Raises
        SegmentError."""
        self._stats = stats
        self._readers = [FlightReader(fd) for fd in flight_fds]
        self._clock_ns = clock_ns
        self._seen = [0] * len(self._readers)
        self._sequence = 0
        self._is_first = True

    @property
    def processes(self) -> list[str]:
        return [reader.name for reader in self._readers]

    def forget(self) -> None:
        """The next event begins with the newest records there are, however old."""
        self._seen = [0] * len(self._readers)
        self._is_first = True

    def event(self) -> EngineEvent:
        """Now, and since the event before."""
        self._sequence += 1
        records, num_left_out = self._news()
        time_us = self._clock_ns() // 1_000
        return EngineEvent(
            self._sequence,
            time_us,
            {name: sum(int(stats[name][0]) for stats in self._stats) for name in _GAUGES},
            [_columns(reader.name, each, time_us) for reader, each in zip(self._readers, records, strict=True)],
            num_left_out,
        )

    def _news(self) -> tuple[list[npt.NDArray[Any]], int]:
        """Each process's records since the last event, the newest MAX_RECORDS; how many are left out."""
        logs = [reader.read(seen, _MOST_READ) for reader, seen in zip(self._readers, self._seen, strict=True)]
        self._seen = [seen + log.num_lost + log.records.size for seen, log in zip(self._seen, logs, strict=True)]
        is_first, self._is_first = self._is_first, False
        num_left_out = 0 if is_first else sum(log.num_lost for log in logs)
        # collectives lie within FORWARD and SAMPLE, and are two a layer
        kept = [log.records[log.records["part"] != Part.COLLECTIVE] for log in logs]
        surplus = sum(records.size for records in kept) - MAX_RECORDS
        if surplus <= 0:
            return kept, num_left_out
        is_new = np.ones(MAX_RECORDS + surplus, bool)
        is_new[np.argsort(np.concatenate([records["end_ns"] for records in kept]), kind="stable")[:surplus]] = False
        ends = np.cumsum([records.size for records in kept])
        newest = [records[mask] for records, mask in zip(kept, np.split(is_new, ends[:-1]), strict=True)]
        return newest, num_left_out + (0 if is_first else surplus)


def description(model: str, interval_s: float, processes: list[str]) -> Description:
    """What a client knows from then on."""
    names = {part.value: part.name.lower().replace("_", " ") for part in Part}
    parts = [names.get(number, "") for number in range(max(names) + 1)]
    return Description(model, round(interval_s * 1e3), processes, parts, [Part.FORWARD, Part.SAMPLE])


def encode_event(kind: str, data: Struct) -> bytes:
    """As a server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(data))


def _columns(process: str, records: npt.NDArray[Any], time_us: int) -> Columns:
    begin_ns = records["begin_ns"]
    return Columns(
        process,
        records["part"].tolist(),
        records["step"].tolist(),
        (begin_ns - time_us * 1_000).tolist(),
        (records["end_ns"] - begin_ns).tolist(),
        records["num_rows"].tolist(),
    )
