"""argv of `albireo-run bench latency` and `bench throughput`: their flags, and the runs behind them.

Only the standard library is imported at the top, since `--help` must answer at once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from albireo.bench.cli import EXIT_BAD_ARGUMENTS, EXIT_FAILED, EXIT_OK

_ABOUT = (
    "Starts a server of MODEL on this machine, without a prefix cache, and asks it over HTTP on the loopback, which is "
    "part of what is measured. Flags of `albireo-run serve` for it go behind `--`."
)
EXIT_NO_SERVER = 3


def add_latency_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `bench latency`: those of `vllm bench latency`."""
    _add_model(parser)
    parser.add_argument("--batch-size", type=int, default=8, help="requests sent at once (default: 8)")
    parser.add_argument("--input-len", type=int, default=32, help="tokens of a prompt (default: 32)")
    parser.add_argument("--output-len", type=int, default=128, help="tokens generated for each (default: 128)")
    parser.add_argument("--num-iters", type=int, default=30, help="batches measured (default: 30)")
    parser.add_argument("--num-iters-warmup", type=int, default=10, help="batches before those (default: 10)")
    parser.add_argument("--output-json", metavar="FILE", help="every iteration's seconds, and percentiles")


def add_throughput_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `bench throughput`: those of `vllm bench throughput`."""
    _add_model(parser)
    parser.add_argument("--dataset-name", default="random", choices=["random", "sharegpt", "custom"])
    parser.add_argument("--dataset-path", metavar="FILE", help="as for bench serve")
    parser.add_argument("--num-prompts", type=int, default=1000, help="all sent at once (default: 1000)")
    parser.add_argument("--input-len", type=int, help="tokens of a random prompt (default: 1024)")
    parser.add_argument("--output-len", type=int, help="tokens to generate (default: 128, or the dataset's)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--output-json", metavar="FILE")


def run_latency(args: argparse.Namespace, serve_flags: Sequence[str]) -> int:
    """Runs it and returns the exit code: 0, 1 if a request failed, 2 for flags that make no sense, 3 if the server did
    not start."""
    return _guarded("latency", lambda: _latency(args, tuple(serve_flags)))


def run_throughput(args: argparse.Namespace, serve_flags: Sequence[str]) -> int:
    """The same for `bench throughput`."""
    return _guarded("throughput", lambda: _throughput(args, tuple(serve_flags)))


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.description = _ABOUT
    parser.add_argument("model", nargs="?", metavar="MODEL", help="checkpoint folder (default: the bundled demo model)")
    parser.add_argument("--model", dest="model_flag", metavar="MODEL", help="the same, as a flag")


def _model(args: argparse.Namespace) -> str:
    from albireo.serve import DEMO_MODEL

    return args.model_flag or args.model or str(DEMO_MODEL)


def _latency(args: argparse.Namespace, serve_flags: tuple[str, ...]) -> None:
    import msgspec

    from albireo.bench.latency import LatencySettings, check, measure_latency, summarise

    names = ("batch_size", "input_len", "output_len", "num_iters", "num_iters_warmup")
    settings = LatencySettings(_model(args), serve_flags=serve_flags, **{name: getattr(args, name) for name in names})
    check(settings)
    result = summarise(measure_latency(settings))
    rows = {"mean": result.avg_latency} | {f"p{p}": value for p, value in result.percentiles.items()}
    print(f"Seconds for a batch of {settings.batch_size}, over HTTP, {settings.num_iters} iterations")
    for name, value in rows.items():
        print(f"  {name:<5}{value:9.4f}")
    _save(args.output_json, msgspec.to_builtins(result))


def _throughput(args: argparse.Namespace, serve_flags: tuple[str, ...]) -> None:
    import msgspec

    from albireo.bench.own_engine import load_settings
    from albireo.bench.settings import SettingsError, check
    from albireo.bench.throughput import measure_throughput

    is_random = args.dataset_name == "random"
    if args.input_len is not None and not is_random:
        raise SettingsError("--input-len is for --dataset-name random")
    input_len = 1024 if args.input_len is None else args.input_len
    output_len = 128 if is_random and args.output_len is None else args.output_len
    load = load_settings(_model(args), args.num_prompts, input_len, output_len)
    load = msgspec.structs.replace(load, dataset_name=args.dataset_name, dataset_path=args.dataset_path, seed=args.seed)
    check(load)
    result = measure_throughput(_model(args), load, serve_flags)
    print(f"{result.num_requests} requests over HTTP in {result.elapsed_time:.2f} s")
    print(f"  requests per second      {result.requests_per_second:12,.2f}")
    print(f"  tokens per second        {result.tokens_per_second:12,.1f}")
    print(f"  output tokens per second {result.output_tokens_per_second:12,.1f}")
    _save(args.output_json, msgspec.to_builtins(result))


def _save(path: str | None, record: dict[str, object]) -> None:
    from albireo.bench.report import save_result

    if path is not None:
        save_result(Path(path), record)
        print(f"saved {path}", file=sys.stderr)


def _guarded(name: str, run: Callable[[], None]) -> int:
    from albireo.bench.own_engine import WaveError
    from albireo.bench.prompts import PromptError
    from albireo.bench.settings import SettingsError
    from albireo.engine_process import EngineProcessError

    codes = {SettingsError: EXIT_BAD_ARGUMENTS, EngineProcessError: EXIT_NO_SERVER}
    try:
        run()
    except (SettingsError, EngineProcessError, WaveError, PromptError, OSError) as error:
        print(f"albireo-run bench {name}: {error}", file=sys.stderr)
        return codes.get(type(error), EXIT_FAILED)
    except KeyboardInterrupt:
        print(f"albireo-run bench {name}: interrupted, no result", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK
