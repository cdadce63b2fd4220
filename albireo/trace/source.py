"""Where records come from: an engine that runs, watched for a while or read at once, or a file that one has left."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from albireo.engine_file import EngineInfo, find_engines
from albireo.shm.flight import FlightLog, FlightReader

INTERVAL_S = 0.2
"""Between two readings: a ring holds seconds of the fastest steps."""


class TraceError(Exception):
    """There is nothing to show; the text is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Recording:
    """All processes' records, and since when they are asked for."""

    logs: list[FlightLog]
    begin_ns: int = 0


def choose_engine(port: int | None, pid: int | None) -> EngineInfo:
    """The engine with this port or supervisor's pid, or the only one. Raises TraceError."""
    engines = find_engines()
    if not engines:
        raise TraceError("no engine of yours runs here; start one with `albireo-run serve`, or name a --record FILE")
    chosen = [engine for engine in engines if port in (None, engine.port) and pid in (None, engine.pid)]
    if len(chosen) == 1:
        return chosen[0]
    listed = ", ".join(f"{engine.model_name} (--port {engine.port}, --pid {engine.pid})" for engine in engines)
    if chosen:
        raise TraceError(f"several engines run here, choose one: {listed}")
    raise TraceError(f"no engine with this --port or --pid; these run: {listed}")


def follow(
    readers: Sequence[FlightReader],
    seconds: float,
    clock_ns: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> Recording:
    """Reads again and again for so long, so that nothing is overwritten unread. Ctrl-C ends it early, with what there
    is."""
    begin_ns = clock_ns()
    logs = [reader.read() for reader in readers]
    try:
        while (left_s := seconds - (clock_ns() - begin_ns) / 1e9) > 0:
            sleep(min(left_s, INTERVAL_S))
            logs = [_continued(log, reader) for log, reader in zip(logs, readers, strict=True)]
    except KeyboardInterrupt:
        pass
    return Recording(logs, begin_ns)


def _continued(log: FlightLog, reader: FlightReader) -> FlightLog:
    """With what was written since; what lies before a loss is left out, since records are told to be consecutive."""
    since = log.num_lost + log.records.size
    news = reader.read(since)
    if news.num_lost:
        return replace(news, num_lost=since + news.num_lost)
    return replace(news, records=np.concatenate((log.records, news.records)), num_lost=log.num_lost)
