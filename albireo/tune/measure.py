"""The runs: in every round a fresh server for each degree and variant, one after the other, each with all loads."""

import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import msgspec

from albireo import child
from albireo.bench.gpu_use import joules_per_output_token
from albireo.bench.machine import describe_machine, describe_versions
from albireo.bench.metrics import RunMetrics, distribution, summarise
from albireo.bench.own_engine import addressed
from albireo.bench.prompts import load_tokenizer
from albireo.bench.report import remarks
from albireo.bench.serve import BenchError, OfferedLoad, ServeRun, serve_bench
from albireo.bench.settings import ServeBenchSettings
from albireo.checkpoint import CheckpointError
from albireo.engine_file import EngineInfo
from albireo.engine_process import EngineProcess, EngineProcessError
from albireo.serve_flags import shown
from albireo.shm.segment import SegmentError
from albireo.tune.engine_watch import PREEMPTIONS, STEPS, SWAPPED_IN, SWAPPED_OUT, EngineUse, EngineWatch
from albireo.tune.figures import LoadFigures, Refusal, StepCost, TuneRecord, Turn
from albireo.tune.settings import TuneSettings
from albireo.tune.step_cost import step_cost
from albireo.tune.variants import NoRoomError, Variant, serve_arguments, variants
from albireo.tune.workload import make_loads, request_settings

PERCENTILES = (50.0, 90.0, 99.0)
FIT_WAVES = 2
"""Requests one after another per row of the batch whose steps are timed."""


def measure(settings: TuneSettings, command: str, on_turn: Callable[[TuneRecord], None]) -> TuneRecord:
    """`on_turn` gets the record so far whenever a turn has ended. Raises PromptError, SegmentError, OSError."""
    tokenizer = load_tokenizer(settings.tokenizer or settings.model)
    loads = make_loads(settings, tokenizer)
    record = TuneRecord(
        settings=msgspec.structs.replace(settings, serve_flags=tuple(shown(settings.serve_flags))),
        command=command,
        date=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        machine=describe_machine(),
        versions=describe_versions(),
        turns=[],
        refusals=[],
        is_complete=False,
    )
    for number, variant, degree in _turns(settings):
        if any((refusal.variant, refusal.degree) == (variant.name, degree) for refusal in record.refusals):
            continue
        _say(settings, number, variant, degree)
        found = _turn(settings, loads, number, variant, degree)
        if isinstance(found, Turn):
            record = msgspec.structs.replace(record, turns=[*record.turns, found])
        else:
            print(f"refused: {found.reason}", file=sys.stderr, flush=True)
            record = msgspec.structs.replace(record, refusals=[*record.refusals, found])
        on_turn(record)
    return msgspec.structs.replace(record, is_complete=True)


def _turns(settings: TuneSettings) -> Iterator[tuple[int, Variant, int]]:
    """Round, variant, degree. Every other round goes through the degrees backwards, so that what drifts does not favour
    one end."""
    for number in range(1, settings.rounds + 1):
        for variant in variants(settings):
            for degree in settings.degrees[:: 1 if number % 2 else -1]:
                yield number, variant, degree


def _say(settings: TuneSettings, number: int, variant: Variant, degree: int) -> None:
    num_replicas = settings.num_gpus // degree
    engines = f"{num_replicas} replica{'s' * (num_replicas > 1)}"
    text = f"round {number} of {settings.rounds}, {variant.name}, t = {degree}, {engines}"
    print(text, file=sys.stderr, flush=True)


def _turn(
    settings: TuneSettings, loads: dict[str, OfferedLoad], number: int, variant: Variant, degree: int
) -> Turn | Refusal:
    try:
        arguments = [settings.model, "--disable-uvicorn-access-log", *serve_arguments(settings, degree, variant)]
        # the client stands for machines elsewhere: it must not take the devices' cores
        server = EngineProcess(arguments, shows_start=True)
        with server as engine, child.giving_way():
            turn = _measure_engine(settings, loads, number, variant, degree, engine)
            server.check()  # else its throughput is that of the requests that it finished before
        return turn
    except (EngineProcessError, NoRoomError, CheckpointError, BenchError) as error:
        return Refusal(variant.name, degree, settings.num_gpus // degree, str(error))


def _measure_engine(
    settings: TuneSettings,
    loads: dict[str, OfferedLoad],
    number: int,
    variant: Variant,
    degree: int,
    engine: EngineInfo,
) -> Turn:
    """The fixed batch first: it warms the server up. Raises BenchError when a load brings nothing at all."""
    asked = addressed(request_settings(settings), engine, settings.serve_flags)
    step, step_remark = _time_steps(settings, asked, degree, engine)
    figures, notes, use = [], [], None
    for label, load in loads.items():
        salted = msgspec.structs.replace(asked, extra_body={"cache_salt": f"tune {label}"})
        run, use = _offer(salted, load)
        metrics = summarise(run.outcomes, settings.goodput)
        if not metrics.completed:
            raise BenchError(f"no request succeeded; the first: {run.outcomes[0].error}")
        figures.append(_load_figures(label, run, metrics, use))
        notes += [f"{label}: {note}" for note in remarks(salted, run, metrics)]
    return Turn(
        variant=variant.name,
        degree=degree,
        num_replicas=settings.num_gpus // degree,
        round=number,
        loads=figures,
        step=step,
        step_remark=step_remark,
        kv_blocks=use.kv_blocks if use is not None else 0,
        block_size=use.block_size if use is not None else 0,
        remarks=tuple(notes),
    )


def _time_steps(
    settings: TuneSettings, asked: ServeBenchSettings, degree: int, engine: EngineInfo
) -> tuple[StepCost | None, str]:
    """Median decode step at `fit_batch` rows of each replica, or why there is none."""
    num_replicas, batch = settings.num_gpus // degree, settings.fit_batch
    fixed = msgspec.structs.replace(
        asked,
        input_len=settings.fit_input_len,
        output_len=settings.fit_output_len,
        num_prompts=batch * num_replicas * FIT_WAVES,
        num_warmups=batch * num_replicas,
        max_concurrency=batch * num_replicas,
        seed=settings.seed + 1,
    )
    try:
        run = serve_bench(fixed, api_key=None)
        begun_ns = min(outcome.start_ns for outcome in run.outcomes)
        # outcomes are timed by time.perf_counter_ns, which on Linux is the record's clock
        cost = step_cost(engine.read_flight(), num_replicas, batch, begun_ns)
    except (BenchError, SegmentError) as error:
        return None, str(error)
    return cost, "" if cost is not None else f"no two steps in a row had {batch} rows that decode and nothing else"


def _offer(asked: ServeBenchSettings, load: OfferedLoad) -> tuple[ServeRun, EngineUse | None]:
    watches: list[EngineWatch] = []

    def watch(*about: object) -> EngineWatch:
        watches.append(EngineWatch(*about))  # type: ignore[arg-type]
        return watches[-1]

    run = serve_bench(asked, None, load, watch)
    return run, watches[0].use


def _load_figures(label: str, run: ServeRun, metrics: RunMetrics, use: EngineUse | None) -> LoadFigures:
    met = metrics.met_goodput
    return LoadFigures(
        load=label,
        duration_s=metrics.duration_s,
        completed=metrics.completed,
        failed=metrics.failed,
        request_throughput=metrics.request_throughput,
        output_throughput=metrics.output_throughput,
        total_throughput=metrics.total_token_throughput,
        goodput=metrics.request_goodput,
        good_share=None if met is None else met / len(run.outcomes),
        latencies_ms=_latencies(metrics),
        busy_shares=use.busy_shares if use is not None else {},
        exposed_share=use.exposed_share if use is not None else None,
        preemptions=_total(use, PREEMPTIONS),
        swapped_out_blocks=_total(use, SWAPPED_OUT),
        swapped_in_blocks=_total(use, SWAPPED_IN),
        kv_usage_peak=use.kv_usage_peak if use is not None else 0.0,
        steps=_total(use, STEPS),
        cached_prompt_tokens=metrics.total_cached_tokens,
        joules_per_token=joules_per_output_token(run.gpu, metrics),
    )


def _latencies(metrics: RunMetrics) -> dict[str, dict[str, float]]:
    kept = ("mean", *(f"p{percentile:g}" for percentile in PERCENTILES))
    found = {name: distribution(values, PERCENTILES) for name, values in metrics.latencies_ms.items()}
    return {name: {key: figures[key] for key in kept} for name, figures in found.items() if figures}


def _total(use: EngineUse | None, name: str) -> int:
    return 0 if use is None else round(use.total(name))
