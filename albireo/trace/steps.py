"""From records to steps: when the device worked on each, and what it waited for before.

The device of an engine of t ranks is taken to be rank 0's: the ranks meet in every layer, so that the others' work
lies beside it but for microseconds, and the coordinator's account of gaps (EXPOSED) is of rank 0, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from albireo.shm.flight import DEVICE_PARTS, FlightLog, Part
from albireo.shm.layout import FLIGHT_RECORD
from albireo.trace.intervals import Intervals, Times

UNKNOWN_NS = -1
"""In place of a gap: no account of one, since the step is the first of all or the first after a time without work."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps in ascending order, as parallel arrays [n]."""

    number: npt.NDArray[np.int64]
    begin_ns: Times
    """When the device began with the step."""
    end_ns: Times
    gap_ns: Times
    """How long the device had nothing to do before though there was work, or UNKNOWN_NS."""
    num_tokens: npt.NDArray[np.int64]
    """Tokens that went through the model."""
    num_decodes: npt.NDArray[np.int64]
    """Rows that decode, by the coordinator's plan; -1 where its record is gone."""

    def __len__(self) -> int:
        return int(self.number.size)

    def take(self, which: npt.NDArray[Any]) -> Self:
        """Those of a mask [n], or of ascending indices."""
        return type(self)(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    def timed(self) -> Self:
        """Those whose period is known: gap and device work."""
        return self.take(self.gap_ns != UNKNOWN_NS)

    def decoding(self, batch: int) -> Self:
        """Steps of exactly `batch` decoding rows and no prompt tokens, that follow on another such step."""
        pure = (self.num_tokens == batch) & (self.num_decodes == batch)
        follows = np.isin(self.number - 1, self.number[pure])
        return self.take(pure & follows).timed()

    @property
    def device(self) -> Intervals:
        """When the device worked."""
        return Intervals(self.begin_ns, self.end_ns)

    @property
    def gaps(self) -> Intervals:
        """When it waited. Of `timed` steps."""
        return Intervals(self.begin_ns - self.gap_ns, self.begin_ns)

    @property
    def period_ns(self) -> Times:
        """From the end of the step before to the end of this one. Of `timed` steps."""
        return self.end_ns - self.begin_ns + self.gap_ns


def find_steps(logs: Sequence[FlightLog]) -> Steps:
    """Every step that the device has worked on and that all processes' records still reach back to."""
    device = records_of(logs, "worker-0", *DEVICE_PARTS)
    number, first = np.unique(device["step"].astype(np.int64), return_index=True)
    begin_ns, end_ns = np.full(number.size, 2**62), np.zeros(number.size, np.int64)
    index = np.searchsorted(number, device["step"].astype(np.int64))
    np.minimum.at(begin_ns, index, device["begin_ns"])
    np.maximum.at(end_ns, index, device["end_ns"])
    exposed = records_of(logs, "coordinator-0", Part.EXPOSED)
    scheduled = records_of(logs, "coordinator-0", Part.SCHEDULE)
    steps = Steps(
        number,
        begin_ns,
        end_ns,
        _by_step(number, exposed, exposed["end_ns"] - exposed["begin_ns"], UNKNOWN_NS),
        device["num_rows"][first].astype(np.int64),
        _by_step(number, scheduled, scheduled["num_rows"], -1),
    )
    return steps.take(begin_ns - np.maximum(steps.gap_ns, 0) >= _complete_since_ns(logs))


def records_of(logs: Sequence[FlightLog], name: str, *parts: Part) -> npt.NDArray[Any]:
    """The records of one process and of some parts, oldest first; none where there is no such process."""
    for log in logs:
        if log.name == name:
            return log.records[np.isin(log.records["part"], parts)]
    return np.zeros(0, FLIGHT_RECORD)


def _by_step(
    number: npt.NDArray[np.int64], records: npt.NDArray[Any], values: npt.NDArray[Any], missing: int
) -> npt.NDArray[np.int64]:
    """Each step's value, `missing` where no record is of it."""
    found = np.full(number.size, missing, np.int64)
    steps = records["step"].astype(np.int64)
    known = np.isin(steps, number)
    found[np.searchsorted(number, steps[known])] = values[known]
    return found


def _complete_since_ns(logs: Sequence[FlightLog]) -> int:
    """Since when no process's records have been overwritten."""
    return max((int(log.records["end_ns"][0]) for log in logs if log.num_lost and log.records.size), default=0)
