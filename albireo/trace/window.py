"""Which steps and records are shown."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from albireo.shm.flight import FlightLog
from albireo.trace.overlap import ACCOUNTS
from albireo.trace.source import Recording, TraceError
from albireo.trace.steps import Steps, find_steps


def recorded_steps(recording: Recording) -> Steps:
    """Raises TraceError where there is none."""
    steps = find_steps(recording.logs)
    if not len(steps):
        raise TraceError("no step has been recorded yet; send the engine a request")
    steps = steps.take(steps.begin_ns >= recording.begin_ns)
    if not len(steps):
        raise TraceError("no step ran in this time; send the engine a request meanwhile")
    return steps


def between(steps: Steps, first: int, last: int) -> Steps:
    """Those numbered `first` to `last`, both included. Raises TraceError where none of them is there."""
    chosen = steps.take((steps.number >= first) & (steps.number <= last))
    if not len(chosen):
        there = f"{steps.number[0]} to {steps.number[-1]}"
        raise TraceError(f"no step from {first} to {last} is in the record, which has steps {there}")
    return chosen


def middle(steps: Steps, count: int) -> Steps:
    """`count` of them from the middle, of a time without a break if there is one."""
    count = min(count, len(steps))
    starts = np.arange(len(steps) - count + 1)
    # the step behind a break has no gap before it: such a step may only be the first
    breaks = np.concatenate(([0], np.cumsum((steps.gap_ns < 0) | (np.diff(steps.number, prepend=0) != 1))))
    unbroken = starts[breaks[starts + count] == breaks[starts + 1]]
    candidates = unbroken if unbroken.size else starts
    start = int(candidates[candidates.size // 2])
    return steps.take(np.arange(start, start + count))


def of_steps(logs: Sequence[FlightLog], steps: Steps) -> list[FlightLog]:
    """What all processes did from the first record that belongs to one of the steps until the last one's."""
    begins, ends = [int(steps.begin_ns[0])], [int(steps.end_ns[-1])]
    for log in logs:
        records = log.records[np.isin(log.records["step"], steps.number) & ~np.isin(log.records["part"], ACCOUNTS)]
        if records.size:
            begins.append(int(records["begin_ns"].min()))
            ends.append(int(records["end_ns"].max()))
    return overlapping(logs, min(begins), max(ends))


def overlapping(logs: Sequence[FlightLog], begin_ns: int, end_ns: int) -> list[FlightLog]:
    """The records that lie in a stretch of time, wholly or in part."""
    return [
        replace(log, records=log.records[(log.records["begin_ns"] < end_ns) & (log.records["end_ns"] > begin_ns)])
        for log in logs
    ]
