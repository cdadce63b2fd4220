"""A job's end of its life: what it was asked for, what it says on the way, the rows that it leaves.

Rows are in the result file as soon as they are known, so that a job that is ended in the middle has said the rest.
"""

import signal
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from gpu_sections.options import Options
from gpu_sections.report import Row


class JobInput(Struct, frozen=True):
    """On the job's stdin, as JSON."""

    options: Options
    model: str
    """The checkpoint's folder."""
    result: str
    """The file for `JobResult`."""
    timeout_s: float
    """After that the job is killed."""
    url: str = ""
    """Of the running server; empty for jobs without one."""
    pid: int = 0
    """Of its supervisor."""
    run_ahead: int = 2
    facts: dict[str, float] = {}
    """What earlier jobs found."""


class JobResult(Struct):
    rows: list[Row] = []
    details: dict[str, object] = {}
    facts: dict[str, float] = {}
    """For later jobs."""


class Job:
    """What a job's main function works with."""

    def __init__(self, given: JobInput) -> None:
        self.given, self.options = given, given.options
        self._result = JobResult()

    @classmethod
    def open(cls) -> "Job":
        # so that `with` blocks stop the servers that they have started
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        return cls(msgspec.json.decode(sys.stdin.buffer.read(), type=JobInput))

    def say(self, text: str) -> None:
        """A line of progress for whoever watches."""
        print(text, flush=True)

    def wants(self, section: str) -> bool:
        return section in self.options.sections

    def row(self, section: str, what: str, value: str, against: str = "", verdict: str = "", *notes: str) -> None:
        self._result.rows.append(Row(section, what, value, against, verdict, notes))
        self.say(f"{section}: {what}: {value} {against} {verdict}".rstrip())
        self.save()

    def detail(self, name: str, value: object) -> None:
        self._result.details[name] = value
        self.save()

    def fact(self, name: str, value: float) -> None:
        self._result.facts[name] = value
        self.save()

    def save(self) -> None:
        Path(self.given.result).write_bytes(msgspec.json.encode(self._result))
