"""The result for a terminal: a table of the degrees, one of their steps, and what follows from them."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from albireo.tune.choice import choose_of
from albireo.tune.conclusions import ablation_sentences, choice_sentences, fit_sentences, model_of, number
from albireo.tune.figures import LoadFigures, Ranged, TuneRecord, ranged_figure
from albireo.tune.serve_flags import flag_value
from albireo.tune.variants import AS_GIVEN, serve_command

Figure = tuple[str, Callable[[LoadFigures], float | None], Callable[[float], str]]
Rows = list[list[str]]


def percentile(metric: str, name: str) -> Callable[[LoadFigures], float | None]:
    return lambda figures: figures.latencies_ms.get(metric, {}).get(name)


def percent(value: float) -> str:
    return f"{value:.1%}"


FIGURES: tuple[Figure, ...] = (
    ("output tokens/s", lambda f: f.output_throughput, number),
    ("all tokens/s", lambda f: f.total_throughput, number),
    ("requests/s", lambda f: f.request_throughput, number),
    ("good requests/s", lambda f: f.goodput, number),
    ("... share of all", lambda f: f.good_share, percent),
    ("TTFT p50, ms", percentile("ttft", "p50"), number),
    ("... p99", percentile("ttft", "p99"), number),
    ("TPOT p50, ms", percentile("tpot", "p50"), number),
    ("... p99", percentile("tpot", "p99"), number),
    ("ITL p50, ms", percentile("itl", "p50"), number),
    ("... p99", percentile("itl", "p99"), number),
    ("end to end p50, ms", percentile("e2el", "p50"), number),
    ("... p99", percentile("e2el", "p99"), number),
    ("device busy", lambda f: f.busy_share, percent),
    ("exposed, share of steps", lambda f: f.exposed_share, percent),
    ("preemptions", lambda f: f.preemptions, number),
    ("KV blocks swapped out", lambda f: f.swapped_out_blocks, number),
    ("... in", lambda f: f.swapped_in_blocks, number),
    ("KV usage, peak", lambda f: f.kv_usage_peak, percent),
    ("J per output token", lambda f: f.joules_per_token, number),
    ("failed requests", lambda f: f.failed, number),
)
NO_METER = "no meter"


def print_record(console: Console, record: TuneRecord) -> None:
    for variant in record.variants:
        for load in record.settings.loads:
            title = f"{variant}, rate {load}" if load != "trace" else f"{variant}, recorded arrivals"
            console.print(_table(title, *load_rows(record, load, variant)))
        console.print(
            _table(f"{variant}, decode steps of {record.settings.fit_batch} rows", *step_rows(record, variant))
        )
        _print_lines(console, fit_sentences(record, variant))
    _print_lines(console, refusal_lines(record))
    for note in notes(record):
        console.print(f"NOTE: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print()
    _print_lines(console, ablation_sentences(record))
    _print_lines(console, choice_sentences(record))
    command = recommended(record)
    if command is not None:
        console.print(f"\n{command}", style="bold", markup=False, highlight=False, soft_wrap=True)


def recommended(record: TuneRecord) -> str | None:
    """The command line of t_e."""
    choice = choose_of(record)
    return None if choice is None else serve_command(record.settings, choice.degree)


def load_rows(record: TuneRecord, load: str, variant: str = AS_GIVEN) -> tuple[list[str], Rows]:
    """Header and rows: a column for each degree that was asked for. A figure that no degree has is left out, but for
    the energy, which nobody should have to look for."""
    degrees = record.settings.degrees
    rows = []
    for name, figure, form in FIGURES:
        values = {t: ranged_figure(record.load_figures(t, load, variant), figure) for t in degrees}
        if any(value is not None for value in values.values()):
            rows.append([name, *(_cell(value, form) for value in values.values())])
        elif "J per" in name:
            rows.append([name, *(NO_METER if record.turns_of(t, variant) else "" for t in degrees)])
    return ["", *(_heading(record, t, variant) for t in degrees)], rows


def step_rows(record: TuneRecord, variant: str = AS_GIVEN) -> tuple[list[str], Rows]:
    """The fixed batch: what was measured, what the fit says, and how much KV cache a replica has."""
    degrees = record.settings.degrees
    steps = {t: record.median_step(t, variant) for t in degrees}
    model = model_of(record, variant)

    def row(name: str, cell: Callable[[int], float | None], form: Callable[[float], str] = number) -> list[str]:
        values = {t: cell(t) if steps[t] is not None else None for t in degrees}
        return [name, *("" if value is None else form(value) for value in values.values())]

    rows = [
        row("step, us", lambda t: None if (step := steps[t]) is None else step.period_us),
        row("... device", lambda t: None if (step := steps[t]) is None else step.device_us),
        row("... of it in collectives", lambda t: None if (step := steps[t]) is None else step.collective_us),
        row("... exposed", lambda t: None if (step := steps[t]) is None else step.exposed_us),
    ]
    if model is not None:
        rows += [
            row("fit: scalable part", model.scalable),
            row("... non-scalable part", lambda t: model.non_scalable_us),
            row("... communication", model.communication),
            row("... residual", model.residual, lambda value: f"{value:+.1%}"),
        ]
    rows.append(["KV tokens per replica", *(_capacity(record, t, variant, per_replica=True) for t in degrees)])
    rows.append(["... of all replicas", *(_capacity(record, t, variant, per_replica=False) for t in degrees)])
    return ["", *(_heading(record, t, variant) for t in degrees)], rows


def notes(record: TuneRecord) -> list[str]:
    """What turns have to say; of those that differ in numbers alone the first, and at which degrees there were others.
    Before them that a device is simulated."""
    found: dict[str, list[tuple[int, str]]] = {}
    for turn in record.turns:
        remarks = turn.remarks if not turn.step_remark else (*turn.remarks, f"steps were not timed: {turn.step_remark}")
        for remark in remarks:
            found.setdefault(re.sub(r"\d[\d.,]*", "0", remark), []).append((turn.degree, remark))
    return [*_of_device(record), *(_note(alike) for alike in found.values())]


def _note(alike: Sequence[tuple[int, str]]) -> str:
    """`alike`: degrees and remarks."""
    (degree, remark), *others = alike
    text = f"t = {degree}, {remark}"
    if not others:
        return text
    counts = Counter(degree for degree, _ in others)
    places = ", ".join(f"{counts[degree]} at t = {degree}" for degree in sorted(counts))
    return f"{text} (and {len(others)} more like it: {places})"


def _of_device(record: TuneRecord) -> list[str]:
    device = flag_value(record.settings.serve_flags, "--device") or ""
    if not device.startswith("sim:"):
        return []
    return [f"{device} is simulated: what its steps take, and their energy, is computed from its spec, not measured"]


def refusal_lines(record: TuneRecord) -> list[str]:
    """One for each degree and reason."""
    found: dict[tuple[int, int, str, str], list[str]] = {}
    for refusal in record.refusals:
        rounds = len(record.turns_of(refusal.degree, refusal.variant))
        left = f"figures of {rounds} round{'s' * (rounds > 1)} only" if rounds else "no figures"
        found.setdefault((refusal.degree, refusal.num_replicas, left, refusal.reason), []).append(refusal.variant)
    return [
        f"t = {degree} x {num_replicas} ({', '.join(variants)}) has {left}: {reason}"
        for (degree, num_replicas, left, reason), variants in found.items()
    ]


def _capacity(record: TuneRecord, degree: int, variant: str, per_replica: bool) -> str:
    turns = record.turns_of(degree, variant)
    if not turns:
        return ""
    return f"{turns[0].kv_tokens * (1 if per_replica else turns[0].num_replicas):,}"


def _heading(record: TuneRecord, degree: int, variant: str) -> str:
    heading = f"t = {degree} x {record.settings.num_gpus // degree}"
    if record.turns_of(degree, variant):
        return heading
    is_refused = any((each.degree, each.variant) == (degree, variant) for each in record.refusals)
    return f"{heading}, {'refused' if is_refused else 'not measured'}"


def _cell(value: Ranged | None, form: Callable[[float], str]) -> str:
    if value is None:
        return ""
    middle, low, high = form(value.median), form(value.low), form(value.high)
    return middle if low == high else f"{middle} ({low}–{high})"


def _table(title: str, header: Sequence[str], rows: Rows) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if not index else "right", no_wrap=not index)
    for row in rows:
        table.add_row(*row)
    return table


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
