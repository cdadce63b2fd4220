"""argv of `albireo-run bench breakdown`: its flags, and the run behind them.

Only the standard library is imported at the top, since `--help` must answer at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from albireo.bench.cli import EXIT_BAD_ARGUMENTS, EXIT_FAILED, EXIT_OK


def add_breakdown_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `bench breakdown`."""
    parser.description = "Starts a server for each --run-ahead; flags of `albireo-run serve` for them go behind `--`."
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder; `demo` is the bundled model")
    load = parser.add_argument_group("load")
    load.add_argument("--batch", type=int, default=32, help="requests that decode at once (default: 32)")
    load.add_argument("--input-len", type=int, default=128, help="tokens of a prompt (default: 128)")
    load.add_argument("--output-len", type=int, default=128, help="tokens generated for each (default: 128)")
    load.add_argument("--waves", type=int, default=3, help="requests one after another per row of the batch")
    load.add_argument("--temperature", type=float, default=0.0, help="(default: 0)")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--run-ahead", default="0,2", metavar="K,K", help="each is measured (default: 0,2)")
    engine.add_argument("--tensor-parallel-size", "-tp", type=int, default=1, metavar="T")
    engine.add_argument("--sampling-mode", choices=["local", "sequence-parallel", "gathered"], default="local")
    result = parser.add_argument_group("result")
    result.add_argument("--rounds", type=int, default=3, help="turns; figures are medians of them (default: 3)")
    result.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    result.add_argument("--save", type=Path, metavar="FILE.json", help="every round's figures")
    result.add_argument("--gantt-dir", type=Path, metavar="DIR", help="a picture of each run-ahead")


def run_breakdown(args: argparse.Namespace, serve_flags: Sequence[str]) -> int:
    """Runs the benchmark and returns the exit code: 0, 1 if anything failed, 2 for flags that make no sense."""
    from albireo.bench.breakdown import BreakdownError, measure_breakdown, settings_from
    from albireo.bench.breakdown_report import report, save
    from albireo.bench.prompts import PromptError
    from albireo.bench.serve import BenchError
    from albireo.bench.settings import SettingsError
    from albireo.shm.segment import SegmentError
    from albireo.trace.source import TraceError

    try:
        settings = settings_from(args, serve_flags)
        result = measure_breakdown(settings)
        print(report(settings, result, args.markdown))
        if args.save is not None:
            save(args.save, settings, result)
    except SettingsError as error:
        print(f"albireo-run bench breakdown: {error}", file=sys.stderr)
        return EXIT_BAD_ARGUMENTS
    except (BreakdownError, BenchError, PromptError, SegmentError, TraceError, OSError) as error:
        print(f"albireo-run bench breakdown: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("albireo-run bench breakdown: interrupted, no result", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK
