"""argv of `albireo-run trace`, and what it does: records of a running or a crashed engine to files and a table.

Only the standard library is imported at the top, since `--help` must answer at once.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from albireo.trace.source import Recording
    from albireo.trace.steps import Steps

EXIT_OK, EXIT_FAILED = 0, 1
DEFAULT_LAST_STEPS = 200
DEFAULT_GANTT_STEPS = 4
MAX_SECONDS = 3600.0


def add_trace_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `trace`."""
    source = parser.add_argument_group("source (default: the engine that runs)")
    engine = source.add_mutually_exclusive_group()
    engine.add_argument("--port", type=int, help="HTTP port of the engine, where several run")
    engine.add_argument("--pid", type=int, help="its supervisor's process id, where several run")
    engine.add_argument("--record", type=Path, metavar="FILE.npz", help="what a crashed engine has left")
    source.add_argument("--replica", type=int, metavar="K", help="of several replicas this one (default: the first)")
    steps = parser.add_argument_group("steps").add_mutually_exclusive_group()
    steps.add_argument("--last-steps", type=_count, metavar="N", help=f"the last N (default: {DEFAULT_LAST_STEPS})")
    steps.add_argument("--steps", type=_step_range, metavar="A:B", help="those numbered A to B, both included")
    steps.add_argument("--seconds", type=_seconds, metavar="S", help="all that run from now on for S seconds")
    result = parser.add_argument_group("result (a table is always printed)")
    result.add_argument("--out", type=Path, metavar="FILE", help="trace.json or trace.json.gz for ui.perfetto.dev")
    result.add_argument("--gantt", type=Path, metavar="FILE", help=".png or .svg, a lane per process")
    result.add_argument(
        "--gantt-steps", type=_count, default=DEFAULT_GANTT_STEPS, metavar="N",
        help=f"steps in the picture, from the middle of the others (default: {DEFAULT_GANTT_STEPS})",
    )  # fmt: skip


def run_trace(args: argparse.Namespace) -> int:
    """Returns the exit code: 0, or 1 with one line that says why not."""
    from albireo.shm.segment import SegmentError
    from albireo.trace.source import TraceError

    try:
        recording = _read(args)
        _show(args, recording, _choose(args, recording))
    except (TraceError, SegmentError, OSError) as error:
        print(f"albireo-run trace: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def _read(args: argparse.Namespace) -> "Recording":
    """Raises TraceError, SegmentError, OSError."""
    from albireo.shm.flight import load
    from albireo.trace.replicas import of_replica
    from albireo.trace.source import Recording, TraceError, choose_engine, follow

    if args.record is not None:
        if args.seconds is not None:
            raise TraceError("--seconds watches an engine that runs; a --record has --last-steps and --steps")
        return Recording(of_replica(load(str(args.record)), args.replica))
    engine = choose_engine(args.port, args.pid)
    if args.seconds is None:
        return Recording(of_replica(engine.read_flight(), args.replica))
    print(f"watching {engine.model_name} (pid {engine.pid}) for {args.seconds:g} s", file=sys.stderr, flush=True)
    recording = follow(engine.flight_readers(), args.seconds)
    return replace(recording, logs=of_replica(recording.logs, args.replica))


def _choose(args: argparse.Namespace, recording: "Recording") -> "Steps":
    """Raises TraceError."""
    from albireo.trace.window import between, recorded_steps

    steps = recorded_steps(recording)
    if args.steps is not None:
        return between(steps, *args.steps)
    if args.seconds is not None:
        return steps
    count = min(args.last_steps or DEFAULT_LAST_STEPS, len(steps))
    return between(steps, int(steps.number[-count]), int(steps.number[-1]))


def _show(args: argparse.Namespace, recording: "Recording", steps: "Steps") -> None:
    """Raises TraceError, OSError."""
    from albireo.trace.overlap import measure
    from albireo.trace.summary import summary
    from albireo.trace.window import middle, of_steps

    first, last = int(steps.number[0]), int(steps.number[-1])
    timed = steps.timed()
    if len(timed):
        print(summary(measure(recording.logs, timed), first, last))
    else:
        print(f"steps {first} to {last}: none with work before it, so that nothing can be said of gaps")
    if args.out is not None:
        from albireo.trace.perfetto import write_trace

        count = write_trace(args.out, of_steps(recording.logs, steps))
        print(f"wrote {args.out}: {count} records; open it at ui.perfetto.dev", file=sys.stderr)
    if args.gantt is not None:
        from albireo.trace.gantt import draw_gantt

        draw_gantt(args.gantt, recording.logs, middle(steps, args.gantt_steps), "What each process did")
        print(f"wrote {args.gantt}", file=sys.stderr)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is out of range: at least 1 is possible")
    return value


_count.__name__ = "int"


def _step_range(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not colon or not first.isdecimal() or not last.isdecimal() or int(first) > int(last):
        raise argparse.ArgumentTypeError(f"{text!r} is no range: 100:200 is, the first number not above the second")
    return int(first), int(last)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is out of range: above 0 and at most {MAX_SECONDS:g} is possible")
    return value


_seconds.__name__ = "float"
