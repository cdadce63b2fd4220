"""argv of `albireo-run bench pipeline`: its flags, and the run behind them.

Only the standard library is imported at the top, since `--help` must answer at once.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from albireo.bench.pipeline import PipelineSettings

EXIT_OK, EXIT_FAILED = 0, 1
_MAX_BATCH = 4096


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `bench pipeline`."""
    parser.add_argument("--batch", type=_batches, default=(1, 64, 256, 1024), metavar="N,N",
                        help="requests running at once; an engine for each (default: 1,64,256,1024)")  # fmt: skip
    parser.add_argument("--step-ms", type=_number(0.0, 500.0), default=0.0, help="what a step takes on the null device")
    parser.add_argument("--run-ahead", type=int, choices=range(17), default=2, metavar="K")
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, choices=range(1, 65), default=1, metavar="T")
    parser.add_argument("--http", action="store_true",
                        help="through a frontend too, with streaming and with other clients")  # fmt: skip
    parser.add_argument("--model", help="checkpoint folder, for sizes and tokenizer (default: the bundled demo model)")
    parser.add_argument("--prompt-len", type=_count, default=16, help="tokens (default: 16)")
    parser.add_argument("--output-len", type=_count, help="tokens (default: as many as the model allows)")
    parser.add_argument("--warmup", type=_number(0.0, 3600.0), default=2.0, metavar="S", help="unmeasured seconds")
    parser.add_argument("--duration", type=_number(0.1, 3600.0), default=5.0, metavar="S", help="measured seconds")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the figures as JSON")


def run_pipeline(args: argparse.Namespace) -> int:
    """Runs the benchmark and returns the exit code: 0, 1 if it failed, 2 or 3 where the engine cannot be had."""
    from albireo.bench.bare_engine import EngineLostError
    from albireo.bench.pipeline_client import RejectedError
    from albireo.bench.pipeline_http import HttpFailedError
    from albireo.errors import StartupError

    try:
        _measure(args, _settings(args))
    except StartupError as error:
        print(f"albireo-run bench pipeline: {error}", file=sys.stderr)
        return error.exit_code
    except (EngineLostError, RejectedError, HttpFailedError, OSError) as error:
        print(f"albireo-run bench pipeline: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def _settings(args: argparse.Namespace) -> "PipelineSettings":
    from albireo.bench.pipeline import PipelineSettings
    from albireo.serve import DEMO_MODEL

    return PipelineSettings(
        model=args.model or str(DEMO_MODEL),
        batches=args.batch,
        step_ms=args.step_ms,
        run_ahead=args.run_ahead,
        tensor_parallel_size=args.tensor_parallel_size,
        prompt_len=args.prompt_len,
        output_len=args.output_len,
        warmup_s=args.warmup,
        duration_s=args.duration,
        http=args.http,
    )


def _measure(args: argparse.Namespace, settings: "PipelineSettings") -> None:
    from rich.console import Console

    from albireo.bench.pipeline import measure
    from albireo.bench.pipeline_report import print_table, save

    measurements = []
    for batch in settings.batches:
        for client in ("zmq", "http-stream", "http") if settings.http else ("zmq",):
            print(f"batch {batch}, {client}", file=sys.stderr, flush=True)
            measurements.append(measure(settings, batch, client))
    # a pipe has no width of its own to fit into
    print_table(Console(width=None if sys.stdout.isatty() else 160), settings, measurements)
    if args.save is not None:
        save(args.save, settings, measurements)
        print(f"saved {args.save}", file=sys.stderr)


def _batches(text: str) -> tuple[int, ...]:
    """`1,64` -> (1, 64)."""
    try:
        batches = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 1,64,256") from None
    if not all(1 <= batch <= _MAX_BATCH for batch in batches):
        raise argparse.ArgumentTypeError(f"{text} is out of range: between 1 and {_MAX_BATCH} is possible")
    return batches


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is out of range: at least 1 is possible")
    return value


def _number(low: float, high: float) -> "argparse._ActionType":
    """A float argument between two bounds, both included."""

    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is out of range: between {low:g} and {high:g} is possible")
        return value

    parse.__name__ = "float"
    return parse
