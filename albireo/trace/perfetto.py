"""Records as Chrome's trace-event JSON, which ui.perfetto.dev and chrome://tracing show.

A row per process; beside the coordinator's a row of its account of the device's gaps. Arrows lead from a step's plan
to the device's work on it, to its confirmation, to the message with its tokens.
"""

import gzip
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from albireo.shm.flight import DEVICE_PARTS, FlightLog, Part
from albireo.trace.overlap import ACCOUNTS

Event = dict[str, object]

_WORK, _ACCOUNT = 1, 2
"""Thread ids: what the process did; what the coordinator says of the device. In one row slices may only nest."""
_WAY = (
    ("coordinator-0", Part.SCHEDULE),
    ("worker-0", Part.FORWARD),
    ("coordinator-0", Part.CONFIRM),
    ("coordinator-0", Part.SEND),
)
"""Where the arrows of a step lead along."""


def write_trace(path: Path, logs: Sequence[FlightLog]) -> int:
    """Writes the file, compressed if its name ends in .gz; returns the number of records. Raises OSError."""
    events = [event for index, log in enumerate(logs) for event in _process(index, log)]
    data = msgspec.json.encode({"traceEvents": events + _arrows(logs), "displayTimeUnit": "ms"})
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return sum(log.records.size for log in logs)


def _process(index: int, log: FlightLog) -> list[Event]:
    """Its names, and a slice per record. Times are microseconds of CLOCK_MONOTONIC."""
    pid = _pid(index, log)
    events = [
        _name("process_name", pid, 0, {"name": log.name}),
        _name("process_sort_index", pid, 0, {"sort_index": index}),
        _name("thread_name", pid, _WORK, {"name": "parts"}),
    ]
    if np.isin(log.records["part"], ACCOUNTS).any():
        events.append(_name("thread_name", pid, _ACCOUNT, {"name": "the device waits"}))
    for step, begin_ns, end_ns, number, rank, num_rows in log.records.tolist():
        part = Part(number)
        events.append(
            {
                "name": part.name,
                "cat": _category(part),
                "ph": "X",
                "ts": begin_ns / 1e3,
                "dur": (end_ns - begin_ns) / 1e3,
                "pid": pid,
                "tid": _ACCOUNT if part in ACCOUNTS else _WORK,
                "args": {"step": step, "num_rows": num_rows, "rank": rank},
            }
        )
    return events


def _arrows(logs: Sequence[FlightLog]) -> list[Event]:
    """Of every step with two of those records or more."""
    stops: dict[int, list[tuple[int, int]]] = {}
    for name, part in _WAY:
        for index, log in enumerate(logs):
            if log.name == name:
                records = log.records[log.records["part"] == part]
                for step, begin_ns in zip(records["step"].tolist(), records["begin_ns"].tolist(), strict=True):
                    stops.setdefault(step, []).append((begin_ns, _pid(index, log)))
    events: list[Event] = []
    for step, way in stops.items():
        phases = ["s", *("t" * (len(way) - 2)), "f"] if len(way) > 1 else []
        for phase, (begin_ns, pid) in zip(phases, way, strict=False):
            event = {"name": "step", "cat": "step", "ph": phase, "id": step, "ts": begin_ns / 1e3, "pid": pid}
            events.append({**event, "tid": _WORK, **({"bp": "e"} if phase == "f" else {})})
    return events


def _name(kind: str, pid: int, tid: int, args: dict[str, object]) -> Event:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": args}


def _pid(index: int, log: FlightLog) -> int:
    """The process's own; a stand-in where it has not recorded anything yet."""
    return log.pid or index + 1


def _category(part: Part) -> str:
    return "account" if part in ACCOUNTS else "device" if part in (*DEVICE_PARTS, Part.COLLECTIVE) else "host"
