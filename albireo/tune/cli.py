"""argv of `albireo-run tune`: its flags, and the run behind them.

Only the standard library is imported at the top, since `--help` must answer at once.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from albireo.bench.cli import EXIT_BAD_ARGUMENTS, EXIT_FAILED, EXIT_OK
from albireo.bench.offline_cli import EXIT_NO_SERVER

if TYPE_CHECKING:
    from albireo.tune.figures import TuneRecord


def add_tune_arguments(parser: argparse.ArgumentParser, size: Callable[[str], int]) -> None:
    """Adds the flags of `tune`. `size`: how the command line writes bytes."""
    parser.description = (
        "For each tensor-parallel degree t that divides --gpus N: starts a server of N/t replicas, offers the "
        "workload, and names the degree that is best. Flags of `albireo-run serve` go behind `--`."
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="checkpoint folder (default: the bundled demo model)")
    parser.add_argument("--model", dest="model_flag", metavar="MODEL", help="the same, as a flag")
    parser.add_argument("--from", dest="saved", type=Path, metavar="FILE.json",
                        help="show a saved result again instead of measuring")  # fmt: skip
    _add_engine_flags(parser.add_argument_group("engine"), size)
    _add_workload_flags(parser.add_argument_group("workload"))
    _add_fit_flags(parser.add_argument_group("steps, for the fit"))
    result = parser.add_argument_group("result")
    result.add_argument("--goodput", nargs="+", default=[], metavar="METRIC:MS",
                        help="what a good request meets: ttft, tpot, e2el; goodput decides then")  # fmt: skip
    result.add_argument("--report", type=Path, metavar="FILE.html", help="tables and pictures in one file")
    result.add_argument("--save", type=Path, metavar="FILE.json", help="every round's figures")


def run_tune(args: argparse.Namespace, serve_flags: Sequence[str], argv: Sequence[str]) -> int:
    """Runs it and returns the exit code: 0, 1 if nothing came of it, 2 for flags that make no sense, 3 if no server
    started. `argv`: for the record."""
    from albireo.bench.prompts import PromptError
    from albireo.bench.settings import SettingsError
    from albireo.serve_flags import shown
    from albireo.shm.segment import SegmentError

    try:
        if args.saved is not None:
            _check_alone(args, argv)
        return _run(args, serve_flags, shlex.join(["albireo-run", *shown(argv)]))
    except SettingsError as error:
        print(f"albireo-run tune: {error}", file=sys.stderr)
        return EXIT_BAD_ARGUMENTS
    except (PromptError, SegmentError, OSError) as error:
        print(f"albireo-run tune: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("albireo-run tune: interrupted, no result", file=sys.stderr)
        return EXIT_FAILED


def _run(args: argparse.Namespace, serve_flags: Sequence[str], command: str) -> int:
    from albireo.tune.html_report import check_report
    from albireo.tune.saved import check_file, load

    if args.report is not None:
        check_report(args.report)
        check_file(args.report, "--report")
    if args.save is not None:
        check_file(args.save, "--save")
    if args.saved is not None:
        record, code = load(args.saved), EXIT_OK
    else:
        record, code = _measure(args, serve_flags, command)
    if not record.turns:
        reason = record.refusals[0].reason if record.refusals else "interrupted"
        print(f"albireo-run tune: no degree has a figure; the first: {reason}", file=sys.stderr)
        return EXIT_NO_SERVER if record.refusals else EXIT_FAILED
    _show(args, record)
    return code


def _check_alone(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Raises SettingsError for flags of a run, that `--from` would leave unused."""
    from albireo.bench.settings import SettingsError

    given = ["MODEL"] if args.model else []
    given += [argument.partition("=")[0] for argument in argv if argument.startswith("--")]
    others = [name for name in given if name not in ("--from", "--report")]
    if others:
        raise SettingsError(f"--from shows what was measured, and only --report goes with it: leave {others[0]} out")


def _measure(args: argparse.Namespace, serve_flags: Sequence[str], command: str) -> "tuple[TuneRecord, int]":
    """With a Ctrl-C after the first turn there is a result of those that had ended, and the exit code says so."""
    from albireo.tune.measure import measure
    from albireo.tune.saved import save
    from albireo.tune.settings import settings_from

    settings = settings_from(args, serve_flags)
    so_far: list[TuneRecord] = []

    def keep(record: "TuneRecord") -> None:
        so_far.append(record)
        if args.save is not None:
            save(args.save, record)

    try:
        record, code = measure(settings, command, keep), EXIT_OK
    except KeyboardInterrupt:
        if not so_far:
            raise
        print("albireo-run tune: interrupted; what follows is of the turns that had ended", file=sys.stderr)
        record, code = so_far[-1], EXIT_FAILED
    if args.save is not None:
        save(args.save, record)
        print(f"saved {args.save}", file=sys.stderr)
    return record, code


def _show(args: argparse.Namespace, record: "TuneRecord") -> None:
    from rich.console import Console

    from albireo.tune.html_report import write_report
    from albireo.tune.table import print_record

    print_record(Console(), record)
    if args.report is not None:
        write_report(args.report, record)
        print(f"wrote {args.report}", file=sys.stderr)


def _add_engine_flags(group: "argparse._ArgumentGroup", size: Callable[[str], int]) -> None:
    group.add_argument("--gpus", type=int, metavar="N", help="devices to divide; required")
    group.add_argument("--tensor-parallel-sizes", metavar="T,T", help="degrees to measure (default: all that divide N)")
    group.add_argument("--tokenizer", metavar="PATH", help="folder of tokenizer.json (default: the model's)")
    group.add_argument("--memory-per-gpu", type=size, metavar="SIZE",
                       help="for --device cpu and null, whose memory is not the devices': a replica's KV cache is what "
                            "the weights leave of t times that")  # fmt: skip
    group.add_argument("--ablate", action="store_true",
                       help="all of it also with run-ahead 0, with gathered sampling, and with both")  # fmt: skip
    group.add_argument("--rounds", type=int, default=3,
                       help="all degrees in turns so often; figures are medians of them (default: 3)")  # fmt: skip


def _add_workload_flags(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--dataset-name", default="random", choices=["random", "sharegpt", "custom"])
    group.add_argument("--dataset-path", metavar="FILE", help="as for bench serve")
    group.add_argument("--trace", metavar="FILE",
                       help="recorded arrivals and lengths: JSON lines of timestamp (ms), input_length and "
                            "output_length, or the CSV of the Azure traces")  # fmt: skip
    group.add_argument("--trace-speed", type=float, default=1.0, metavar="X", help="replay so many times as fast")
    group.add_argument("--input-len", metavar="TOKENS", help="of a random prompt, or LOW-HIGH (default: 512)")
    group.add_argument("--output-len", metavar="TOKENS",
                       help="to generate, or LOW-HIGH (default: 128, or what the dataset says)")  # fmt: skip
    group.add_argument("--prefix-len", type=int, default=0, metavar="TOKENS", help="shared by all random prompts")
    group.add_argument("--request-rate", nargs="+", metavar="RATE",
                       help="requests per second of all replicas; several are offered one after another (default: inf, "
                            "all at once)")  # fmt: skip
    group.add_argument("--burstiness", type=float, default=1.0, help="as for bench serve (default: 1, Poisson)")
    group.add_argument("--num-prompts", type=int, default=200, help="at each rate; of a trace the first (default: 200)")
    group.add_argument("--max-concurrency", type=int, help="most requests at once")
    group.add_argument("--temperature", type=float, help="(default: the server's)")
    group.add_argument("--seed", type=int, default=0, help="of prompts, lengths and arrivals")


def _add_fit_flags(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--fit-batch", type=int, default=16, help="rows of each replica that decode (default: 16)")
    group.add_argument("--fit-input-len", type=int, default=128, metavar="TOKENS", help="(default: 128)")
    group.add_argument("--fit-output-len", type=int, default=64, metavar="TOKENS", help="(default: 64)")
