"""What one `albireo-run tune` does, as a frozen record: made from argv once, saved whole with the result."""

import argparse
import math
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from albireo.bench.settings import DatasetName, SettingsError, parse_float, parse_goodput
from albireo.tune.serve_flags import check_serve_flags

TRACE = "trace"
"""The label of a load whose arrivals were recorded."""
MAX_GPUS = 64
"""`serve` takes no more ranks."""


Degree = Annotated[int, Meta(ge=1, le=MAX_GPUS)]
Label = Annotated[str, Meta(pattern=rf"^({TRACE}|inf|\d+(\.\d+)?(e[+-]\d+)?)\Z")]


class LengthRange(Struct, frozen=True):
    """Tokens, both ends included; each prompt's length is drawn evenly between them."""

    low: int
    high: int


class TuneSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Named as the flags."""

    model: str
    num_gpus: Degree
    degrees: tuple[Degree, ...]
    """Those to measure, ascending; each divides `num_gpus`."""
    tokenizer: str | None
    dataset_name: DatasetName
    dataset_path: str | None
    trace: str | None
    trace_speed: float
    """How many times as fast as they were recorded the requests of a trace come."""
    input_len: LengthRange
    output_len: LengthRange | None
    """None: the dataset says."""
    prefix_len: int
    loads: Annotated[tuple[Label, ...], Meta(min_length=1)]
    """Labels of the offered loads, in the order in which they are offered: a rate in requests per second, `inf`, or
    TRACE. Text, since JSON has no infinity."""
    burstiness: float | None
    """None: evenly spaced (the flag's `inf`)."""
    num_prompts: int
    max_concurrency: int | None
    temperature: float | None
    seed: int
    goodput: dict[str, float]
    fit_batch: int
    """Rows of each replica whose decode step is timed for the fit."""
    fit_input_len: int
    fit_output_len: int
    memory_per_gpu: int | None
    """Bytes; None: the server finds out what there is."""
    rounds: int
    ablate: bool
    serve_flags: tuple[str, ...]

    @property
    def objective(self) -> str:
        """Which figure decides."""
        return "goodput" if self.goodput else "throughput"

    @property
    def rates(self) -> tuple[float, ...]:
        """Of `loads`, in requests per second; a trace has none."""
        return tuple(float(label) for label in self.loads if label != TRACE)


def settings_from(args: argparse.Namespace, serve_flags: Sequence[str]) -> TuneSettings:
    """Raises SettingsError."""
    from albireo.serve import DEMO_MODEL

    _check_numbers(args)
    _check_combinations(args)
    check_serve_flags(serve_flags, args.memory_per_gpu is not None)
    model = args.model_flag or args.model or str(DEMO_MODEL)
    is_random = args.dataset_name == "random"
    return TuneSettings(
        model=str(DEMO_MODEL) if model == "demo" else model,
        num_gpus=args.gpus,
        degrees=_degrees(args.gpus, args.tensor_parallel_sizes),
        tokenizer=args.tokenizer,
        dataset_name=args.dataset_name,
        dataset_path=args.dataset_path,
        trace=args.trace,
        trace_speed=args.trace_speed,
        input_len=parse_range(args.input_len or "512", "--input-len"),
        output_len=parse_range(args.output_len or "128", "--output-len") if is_random or args.output_len else None,
        prefix_len=args.prefix_len,
        loads=(TRACE,) if args.trace else parse_rates(args.request_rate or ["inf"]),
        burstiness=None if math.isinf(args.burstiness) else args.burstiness,
        num_prompts=args.num_prompts,
        max_concurrency=args.max_concurrency,
        temperature=args.temperature,
        seed=args.seed,
        goodput=parse_goodput(args.goodput),
        fit_batch=args.fit_batch,
        fit_input_len=args.fit_input_len,
        fit_output_len=args.fit_output_len,
        memory_per_gpu=args.memory_per_gpu,
        rounds=args.rounds,
        ablate=args.ablate,
        serve_flags=tuple(serve_flags),
    )


def parse_range(text: str, flag: str) -> LengthRange:
    """`128` or `64-256`. Raises SettingsError."""
    low, _, high = text.partition("-")
    if not low.isdecimal() or not (high or low).isdecimal() or text.endswith("-"):
        raise SettingsError(f"{flag} takes a number of tokens or LOW-HIGH, not {text!r}")
    found = LengthRange(int(low), int(high or low))
    if not 1 <= found.low <= found.high:
        raise SettingsError(f"{flag} must begin at 1 or more and not end before it begins, not {text!r}")
    return found


def parse_rates(texts: Sequence[str]) -> tuple[str, ...]:
    """`2 8,inf` -> ("2", "8", "inf"). Raises SettingsError."""
    rates = [parse_float(part, "--request-rate") for text in texts for part in text.split(",") if part]
    labels = tuple(f"{rate:g}" for rate in rates)
    if not rates or any(not rate > 0 for rate in rates) or len({*labels}) < len(labels):
        raise SettingsError(f"--request-rate takes different rates above 0, not {' '.join(texts)!r}")
    return labels


def _degrees(num_gpus: int, chosen: str | None) -> tuple[int, ...]:
    """Raises SettingsError."""
    divisors = tuple(t for t in range(1, num_gpus + 1) if num_gpus % t == 0)
    if chosen is None:
        return divisors
    parts = [int(part) if part.isdecimal() else 0 for part in chosen.split(",")]
    if any(part not in divisors for part in parts):
        raise SettingsError(
            f"--tensor-parallel-sizes takes divisors of --gpus {num_gpus} ({', '.join(map(str, divisors))}), "
            f"not {chosen!r}"
        )
    return tuple(sorted({*parts}))


def _check_numbers(args: argparse.Namespace) -> None:
    least = {
        "gpus": 1, "prefix_len": 0, "num_prompts": 1, "fit_batch": 1, "fit_input_len": 1, "fit_output_len": 8,
        "rounds": 1, "seed": 0,
    }  # fmt: skip
    if args.gpus is None:
        raise SettingsError("--gpus says how many devices there are to divide: it must be given")
    if args.max_concurrency is not None:
        least["max_concurrency"] = 1
    for name, bound in least.items():
        if getattr(args, name) < bound:
            flag = "--" + name.replace("_", "-")
            raise SettingsError(f"{flag} must be at least {bound}, not {getattr(args, name)}")
    if args.gpus > MAX_GPUS:
        raise SettingsError(f"--gpus must be at most {MAX_GPUS}, not {args.gpus}")
    for flag, value in {"--burstiness": args.burstiness, "--trace-speed": args.trace_speed}.items():
        if not value > 0:  # NaN too
            raise SettingsError(f"{flag} must be above 0, not {value:g}")
    if math.isinf(args.trace_speed):
        raise SettingsError("--trace-speed must be finite: it says how many times as fast")
    if args.temperature is not None and not 0 <= args.temperature < math.inf:
        raise SettingsError(f"--temperature must be at least 0, and finite, not {args.temperature:g}")


def _check_combinations(args: argparse.Namespace) -> None:
    needs_file = args.dataset_name != "random"
    if needs_file and args.dataset_path is None:
        raise SettingsError(f"--dataset-name {args.dataset_name} needs the file: name it with --dataset-path")
    if args.dataset_path is not None and not needs_file:
        raise SettingsError("--dataset-path needs --dataset-name sharegpt or custom")
    if needs_file and (args.input_len or args.prefix_len):
        raise SettingsError("--input-len and --prefix-len are for --dataset-name random")
    if not args.trace:
        return
    given = {
        "--dataset-name": needs_file, "--request-rate": args.request_rate, "--input-len": args.input_len,
        "--output-len": args.output_len, "--prefix-len": args.prefix_len, "--burstiness": args.burstiness != 1.0,
    }  # fmt: skip
    for flag, value in given.items():
        if value:
            raise SettingsError(f"--trace brings lengths and arrivals of its own: leave {flag} out")
