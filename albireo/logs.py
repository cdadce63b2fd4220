"""Log lines of every process: stderr, one line an event, with the process's name. A leaf.

As text a line is a sentence; as JSON it is an object with `time`, `level`, `process`, `message`, and the figures of the
sentence as fields of their own where the event has any (`fields`). On the journal both begin with its <N>.
"""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from albireo.config import LogFormat, LogLevel, under_journald

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""syslog's numbers, as systemd reads them from a line's <N> prefix."""

_NOISY: Final = ("numba", "uvicorn")
"""Loggers with nothing to say below a warning: at debug numba's compiler writes a hundred thousand lines for a kernel,
and uvicorn gives its own account of a start and an end, which the supervisor tells."""

_FIELDS: Final = "albireo_fields"


def fields(**values: object) -> dict[str, Any]:
    """As `extra=` of a log call: an event's figures, for who reads lines with a program."""
    return {_FIELDS: values}


def journal_prefix(level: int) -> str:
    """What a line of this level begins with when stderr is the journal; empty when it is not."""
    return f"<{_PRIORITIES.get(level, 6)}>" if under_journald() else ""


def json_line(process: str, level: int, message: str, values: Mapping[str, object], time_s: float) -> str:
    """One event. `time_s`: since the epoch."""
    time = datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    name = logging.getLevelName(level).lower()
    return json.dumps({"time": time, "level": name, "process": process, "message": message, **values}, default=str)


class _JournalFormatter(logging.Formatter):
    """The journal has its own timestamps and takes the level from <N>; each line of a traceback needs its own."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process
        self._on_journal = under_journald()

    def format(self, record: logging.LogRecord) -> str:
        values = dict(getattr(record, _FIELDS, {}))
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        line = json_line(self._process, record.levelno, record.getMessage(), values, record.created)
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{line}" if self._on_journal else line


def configure(process_name: str, level: LogLevel, log_format: LogFormat = "text") -> None:
    """Sends this process's log records to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(process_name, log_format))
    logging.basicConfig(handlers=[handler], force=True)
    set_level(level)


def set_level(level: LogLevel) -> None:
    """Of this process, from now on."""
    logging.getLogger().setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def _formatter(process_name: str, log_format: LogFormat) -> logging.Formatter:
    if log_format == "json":
        return _JsonFormatter(process_name)
    if under_journald():
        return _JournalFormatter(f"{process_name}: %(message)s")
    return logging.Formatter(f"%(asctime)s.%(msecs)03d %(levelname)-7s {process_name}: %(message)s", "%H:%M:%S")
