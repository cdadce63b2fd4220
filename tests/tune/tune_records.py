"""Records of runs that never were."""

from collections.abc import Mapping, Sequence
from typing import Any

from albireo.cli import build_parser
from albireo.tune.figures import LoadFigures, Refusal, StepCost, TuneRecord, Turn
from albireo.tune.settings import TuneSettings, settings_from
from albireo.tune.variants import AS_GIVEN


def settings(*flags: str, serve_flags: Sequence[str] = ()) -> TuneSettings:
    """As from this command line, four devices unless it says otherwise. Raises SettingsError."""
    return settings_from(build_parser().parse_args(["tune", "demo", "--gpus", "4", *flags]), serve_flags)


def load(output_throughput: float, label: str = "inf", **others: Any) -> LoadFigures:
    latencies = {name: {"mean": 9.0, "p50": 8.0, "p90": 12.0, "p99": 20.0} for name in ("ttft", "tpot", "itl", "e2el")}
    figures: dict[str, Any] = {
        "load": label, "duration_s": 10.0, "completed": 100, "failed": 0, "request_throughput": 10.0,
        "output_throughput": output_throughput, "total_throughput": 3 * output_throughput, "goodput": None,
        "good_share": None, "latencies_ms": latencies, "busy_shares": {"0": 0.5, "1": 0.7}, "exposed_share": 0.02,
        "preemptions": 3, "swapped_out_blocks": 0, "swapped_in_blocks": 0, "kv_usage_peak": 0.8, "steps": 1000,
        "cached_prompt_tokens": 0, "joules_per_token": None,
    }  # fmt: skip
    return LoadFigures(**figures | others)


def step(period_us: float, collective_us: float | None = None) -> StepCost:
    return StepCost(16, 100, period_us, period_us * 0.9, period_us * 0.1, collective_us)


def turn(degree: int, *loads: LoadFigures, number: int = 1, variant: str = AS_GIVEN, cost: StepCost | None = None,
         num_gpus: int = 4) -> Turn:  # fmt: skip
    remark = "" if cost is not None else "too few steps"
    return Turn(variant, degree, num_gpus // degree, number, list(loads), cost, remark, 1000 * degree, 16, ())


def record(turns: Sequence[Turn], *flags: str, refusals: Sequence[Refusal] = ()) -> TuneRecord:
    return TuneRecord(
        settings=settings("--rounds", str(max((each.round for each in turns), default=1)), *flags),
        command="albireo-run tune demo --gpus 4",
        date="2026-11-30T00:00:00Z",
        machine={"cpu": "a <CPU>", "cores": 2, "memory_gib": 8.0, "system": "Linux"},
        versions={"albireo": "0.1"},
        turns=list(turns),
        refusals=list(refusals),
    )


def throughputs(values: Mapping[int, Sequence[float]], variant: str = AS_GIVEN) -> list[Turn]:
    """A turn for each degree and round, of one load."""
    periods = {degree: 1000.0 / degree + 200.0 for degree in values}
    return [
        turn(degree, load(value), number=number, variant=variant, cost=step(periods[degree], 10.0))
        for degree, rounds in values.items()
        for number, value in enumerate(rounds, 1)
    ]
