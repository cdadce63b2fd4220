"""argv of `albireo-run doctor`: its flags, and the examination behind them.

Only the standard library is imported at the top, since `--help` must answer at once.
"""

import argparse
import sys
from collections.abc import Callable

EXIT_OK, EXIT_BAD_ARGUMENTS, EXIT_CANNOT_START = 0, 2, 3


def add_doctor_arguments(parser: argparse.ArgumentParser, device: Callable[[str], str]) -> None:
    """Adds the flags of `doctor`; those that `serve` has too mean the same. `device`: how the command line writes
    one."""
    parser.description = "Says what this machine has, what a server would use of it, what would fit and what is missing"
    parser.add_argument("model", nargs="?", metavar="MODEL", help="checkpoint folder (default: the bundled demo model)")
    parser.add_argument("--model", dest="model_flag", metavar="MODEL", help="the same, as a flag")
    parser.add_argument("--device", type=device, default="auto", metavar="auto|cpu|cuda|null|sim:SPEC")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    parser.add_argument("--max-model-len", type=int, metavar="TOKENS")
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1, metavar="T")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 to 65535")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run_doctor(args: argparse.Namespace) -> int:
    """Prints what was found; exit code 0 if `serve` could start with these flags, 3 if it could not,
    2 for flags that make no sense."""
    import msgspec

    from albireo.doctor.examine import examine
    from albireo.doctor.report import print_report
    from albireo.engine_args import EngineArgs
    from albireo.serve import DEMO_MODEL

    for flag, value, low, high in (
        ("-tp", args.tensor_parallel_size, 1, 64),
        ("--max-model-len", args.max_model_len, 2, 2**31 - 1),
        ("--port", args.port, 0, 65535),
    ):
        if value is not None and not low <= value <= high:
            print(f"albireo-run doctor: {flag} must be between {low} and {high}, not {value}", file=sys.stderr)
            return EXIT_BAD_ARGUMENTS
    engine = EngineArgs(
        model=args.model_flag or args.model or str(DEMO_MODEL),
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        tensor_parallel_size=args.tensor_parallel_size,
        device=args.device,
    )
    found = examine(engine, args.host, args.port)
    if args.json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    else:
        print_report(found)
    return EXIT_OK if found.can_start else EXIT_CANNOT_START
