"""What of a decode step the device waits for, for several --run-ahead: servers in turns, the flight record of each.

Measured are steps in which exactly `batch` rows decode and no prompt is computed, that follow on another such step.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from albireo import child
from albireo.bench.gpu_use import joules_per_output_token
from albireo.bench.medians import median_of
from albireo.bench.metrics import summarise
from albireo.bench.own_engine import addressed, load_settings
from albireo.bench.serve import ServeRun, serve_bench
from albireo.bench.settings import ServeBenchSettings, SettingsError
from albireo.engine_process import EngineProcess, EngineProcessError
from albireo.serve_flags import has_replicas
from albireo.shm.flight import FlightLog
from albireo.trace.overlap import Overlap, measure
from albireo.trace.steps import Steps, find_steps
from albireo.trace.window import middle

GANTT_STEPS = 4
MAX_RUN_AHEAD = 16


class BreakdownError(Exception):
    """There is no result; the text is one line."""


class BreakdownSettings(Struct, frozen=True):
    """One run of `bench breakdown`, named as its flags."""

    model: str
    batch: int
    input_len: int
    output_len: int
    waves: int
    temperature: float
    run_aheads: tuple[int, ...]
    tensor_parallel_size: int
    sampling_mode: str
    serve_flags: tuple[str, ...]
    rounds: int
    gantt_dir: str | None


class Turn(Struct, frozen=True):
    """One server's figures."""

    run_ahead: int
    output_throughput: float
    """Tokens per second of the whole run, prompts included."""
    decode_throughput: float
    """Tokens per second while the measured steps ran."""
    overlap: Overlap
    gpu_busy_share: float | None = None
    """Of the whole run. None where the server says nothing of its GPUs; so for the next."""
    joules_per_output_token: float | None = None
    """Energy of the whole run over its output tokens."""


def settings_from(args: argparse.Namespace, serve_flags: Sequence[str]) -> BreakdownSettings:
    """Raises SettingsError."""
    from albireo.serve import DEMO_MODEL

    least = {"batch": 1, "input_len": 1, "output_len": 8, "waves": 1, "rounds": 1, "tensor_parallel_size": 1}
    for name, bound in least.items():
        if getattr(args, name) < bound:
            flag = "--" + name.replace("_", "-")
            raise SettingsError(f"{flag} must be at least {bound}, not {getattr(args, name)}")
    if has_replicas(serve_flags):
        raise SettingsError("--replicas must be 1: the steps of one engine are measured, under a batch that is its own")
    if not args.temperature >= 0:
        raise SettingsError(f"--temperature must be at least 0, not {args.temperature:g}")
    return BreakdownSettings(
        model=str(DEMO_MODEL) if args.model == "demo" else args.model,
        batch=args.batch,
        input_len=args.input_len,
        output_len=args.output_len,
        waves=args.waves,
        temperature=args.temperature,
        run_aheads=parse_run_aheads(args.run_ahead),
        tensor_parallel_size=args.tensor_parallel_size,
        sampling_mode=args.sampling_mode,
        serve_flags=tuple(serve_flags),
        rounds=args.rounds,
        gantt_dir=str(args.gantt_dir) if args.gantt_dir is not None else None,
    )


def parse_run_aheads(text: str) -> tuple[int, ...]:
    """`0,2` -> (0, 2). Raises SettingsError."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) <= MAX_RUN_AHEAD for part in parts) or len({*parts}) < len(parts):
        raise SettingsError(f"--run-ahead takes different numbers from 0 to {MAX_RUN_AHEAD}, not {text!r}")
    return tuple(int(part) for part in parts)


def measure_breakdown(settings: BreakdownSettings) -> list[Turn]:
    """Every round starts a fresh server for each run-ahead, one after the other. Raises BreakdownError, BenchError,
    PromptError, SegmentError, TraceError, OSError."""
    turns = []
    for number in range(1, settings.rounds + 1):
        for run_ahead in settings.run_aheads:
            print(f"round {number} of {settings.rounds}, run-ahead {run_ahead}", file=sys.stderr, flush=True)
            turns.append(_turn(settings, run_ahead))
    return turns


def of_run_ahead(turns: Sequence[Turn], run_ahead: int) -> Turn:
    """The median of each figure over the rounds of one run-ahead."""
    return median_of([turn for turn in turns if turn.run_ahead == run_ahead])


def _turn(settings: BreakdownSettings, run_ahead: int) -> Turn:
    arguments = [
        settings.model, "--run-ahead", str(run_ahead), "--disable-uvicorn-access-log",
        "-tp", str(settings.tensor_parallel_size), "--sampling-mode", settings.sampling_mode, *settings.serve_flags,
    ]  # fmt: skip
    try:
        with EngineProcess(arguments) as engine:
            # the client stands for machines elsewhere: it must not take the device's cores
            with child.giving_way():
                run = serve_bench(addressed(_load(settings), engine, settings.serve_flags), api_key=None)
            logs = engine.read_flight()
    except EngineProcessError as error:
        raise BreakdownError(str(error)) from None
    steps = _measured_steps(settings, run, logs)
    if settings.gantt_dir is not None:
        _draw(settings, run_ahead, logs, steps)
    overlap = measure(logs, steps)
    metrics = summarise(run.outcomes, {})
    return Turn(
        run_ahead,
        metrics.output_throughput,
        settings.batch * 1e6 / overlap.period.mean_us,
        overlap,
        None if run.gpu is None else run.gpu.busy_share,
        joules_per_output_token(run.gpu, metrics),
    )


def _load(settings: BreakdownSettings) -> ServeBenchSettings:
    """`batch` requests at once; the next wave begins as they end."""
    num_prompts = settings.batch * settings.waves
    load = load_settings(settings.model, num_prompts, settings.input_len, settings.output_len)
    return replace(load, num_warmups=settings.batch, max_concurrency=settings.batch, temperature=settings.temperature)


def _measured_steps(settings: BreakdownSettings, run: ServeRun, logs: Sequence[FlightLog]) -> Steps:
    """Raises BreakdownError."""
    errors = [outcome.error for outcome in run.outcomes if outcome.error is not None]
    if errors:
        raise BreakdownError(f"{len(errors)} of {len(run.outcomes)} requests failed; the first: {errors[0]}")
    steps = find_steps(logs)
    # outcomes are timed by time.perf_counter_ns, which on Linux is the record's clock
    steps = steps.take(steps.begin_ns > min(outcome.start_ns for outcome in run.outcomes)).decoding(settings.batch)
    if not len(steps):
        raise BreakdownError(
            f"no two steps in a row had {settings.batch} rows that decode and nothing else: raise --output-len, or "
            f"the server's --max-num-seqs or --kv-cache-bytes behind `--`"
        )
    return steps


def _draw(settings: BreakdownSettings, run_ahead: int, logs: Sequence[FlightLog], steps: Steps) -> None:
    """Into run-ahead-K.png; a later round's picture takes the place of an earlier one's."""
    from albireo.trace.gantt import draw_gantt

    folder = Path(settings.gantt_dir or ".")
    folder.mkdir(parents=True, exist_ok=True)
    ranks = f", {settings.tensor_parallel_size} ranks" if settings.tensor_parallel_size > 1 else ""
    title = f"{Path(settings.model).name}, batch {settings.batch}{ranks}, --run-ahead {run_ahead}"
    draw_gantt(folder / f"run-ahead-{run_ahead}.png", logs, middle(steps, GANTT_STEPS), title)
