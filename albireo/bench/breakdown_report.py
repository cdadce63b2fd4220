"""The tables of `bench breakdown`, for a terminal or as Markdown, and its JSON."""

import shlex
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from albireo.bench.breakdown import BreakdownSettings, Turn, of_run_ahead
from albireo.bench.machine import describe_machine, describe_versions
from albireo.bench.report import save_result
from albireo.serve_flags import shown
from albireo.trace.overlap import PartTime
from albireo.trace.text_table import aligned, markdown

_FIGURES: tuple[tuple[str, Callable[[Turn], float | None], str], ...] = (
    ("exposed, share of the step", lambda turn: turn.overlap.gap_share, "{:.2%}"),
    ("exposed, us per step: mean", lambda turn: turn.overlap.gap.mean_us, "{:.0f}"),
    ("... p50", lambda turn: turn.overlap.gap.p50_us, "{:.0f}"),
    ("... p99", lambda turn: turn.overlap.gap.p99_us, "{:.0f}"),
    ("... p99.9", lambda turn: turn.overlap.gap.p999_us, "{:.0f}"),
    ("... max", lambda turn: turn.overlap.gap.max_us, "{:.0f}"),
    ("... of the mean: no process was busy", lambda turn: turn.overlap.nobody_us, "{:.0f}"),
    ("exposed p99, share of the median step", lambda t: t.overlap.gap.p99_us / t.overlap.period.p50_us, "{:.2%}"),
    ("step, us: p50", lambda turn: turn.overlap.period.p50_us, "{:.0f}"),
    ("... p99", lambda turn: turn.overlap.period.p99_us, "{:.0f}"),
    ("... p99.9", lambda turn: turn.overlap.period.p999_us, "{:.0f}"),
    ("device, us per step: mean", lambda turn: turn.overlap.device.mean_us, "{:.0f}"),
    ("steps/s", lambda turn: 1e6 / turn.overlap.period.mean_us, "{:.1f}"),
    ("tokens/s of these steps", lambda turn: turn.decode_throughput, "{:.0f}"),
    ("tokens/s of the whole run", lambda turn: turn.output_throughput, "{:.0f}"),
    ("does not shrink with ranks: exposed and collectives", lambda turn: turn.overlap.non_scalable.fraction, "{:.2%}"),
    (
        "... and sampling, if every rank samples all rows",
        lambda turn: turn.overlap.non_scalable.fraction_sampling_repeated,
        "{:.2%}",
    ),
    ("speed-up bound of the former, t = 2", lambda turn: turn.overlap.non_scalable.speed_up_bounds[2], "{:.2f}"),
    ("... t = 4", lambda turn: turn.overlap.non_scalable.speed_up_bounds[4], "{:.2f}"),
    ("... t = 8", lambda turn: turn.overlap.non_scalable.speed_up_bounds[8], "{:.2f}"),
    ("GPU busy with steps, share of the whole run", lambda turn: turn.gpu_busy_share, "{:.2%}"),
    ("joules per output token of the whole run", lambda turn: turn.joules_per_output_token, "{:.4g}"),
    ("steps measured, per round", lambda turn: turn.overlap.num_steps, "{:.0f}"),
)
_NO_PART = PartTime("", "", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def report(settings: BreakdownSettings, turns: Sequence[Turn], as_markdown: bool) -> str:
    """Both tables and what they were measured on."""
    render = markdown if as_markdown else aligned
    rounds = f"medians of {settings.rounds} rounds, range in parentheses" if settings.rounds > 1 else "one round"
    machine, ranks = describe_machine(), settings.tensor_parallel_size
    about = (
        f"{datetime.now(UTC):%Y-%m-%d}, {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}. {Path(settings.model).name}, batch {settings.batch}, {settings.input_len} + "
        f"{settings.output_len} tokens, {ranks} rank{'s' * (ranks > 1)}; {rounds}."
    )
    return "\n\n".join(
        [
            about,
            f"`{command_line(settings)}`",
            render(*_figure_table(settings, turns)),
            render(*_part_table(settings, turns)),
        ]
    )


def command_line(settings: BreakdownSettings) -> str:
    """What measures the same again; the model by its folder's name, since the path says nothing elsewhere."""
    flags = {
        "--batch": settings.batch,
        "--input-len": settings.input_len,
        "--output-len": settings.output_len,
        "--waves": settings.waves,
        "--temperature": f"{settings.temperature:g}",
        "--run-ahead": ",".join(map(str, settings.run_aheads)),
        "-tp": settings.tensor_parallel_size,
        "--sampling-mode": settings.sampling_mode,
        "--rounds": settings.rounds,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    behind = ["--", *shown(settings.serve_flags)] if settings.serve_flags else []
    return shlex.join(["albireo-run", "bench", "breakdown", Path(settings.model).name, *words, *behind])


def save(path: Path, settings: BreakdownSettings, turns: Sequence[Turn]) -> None:
    """Every turn, not only medians. Raises OSError."""
    record: dict[str, object] = {
        "date": datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
        "settings": msgspec.to_builtins(settings) | {"serve_flags": shown(settings.serve_flags)},
        "machine": describe_machine(),
        "versions": describe_versions(),
        "turns": msgspec.to_builtins(turns, str_keys=True),
    }
    save_result(path, record)


def _figure_table(settings: BreakdownSettings, turns: Sequence[Turn]) -> tuple[list[str], list[list[str]]]:
    header = ["", *(f"run-ahead {run_ahead}" for run_ahead in settings.run_aheads)]
    rows = []
    for name, figure, form in _FIGURES:
        cells = []
        for run_ahead in settings.run_aheads:
            values = [v for turn in turns if turn.run_ahead == run_ahead and (v := figure(turn)) is not None]
            middle = figure(of_run_ahead(turns, run_ahead))
            if middle is None:
                continue
            cell = form.format(middle)
            spread = f" ({form.format(min(values))}–{form.format(max(values))})" if settings.rounds > 1 else ""
            cells.append(cell + spread)
        if len(cells) == len(settings.run_aheads):  # a figure that the server did not give everywhere has no row
            rows.append([name, *cells])
    return header, rows


def _part_table(settings: BreakdownSettings, turns: Sequence[Turn]) -> tuple[list[str], list[list[str]]]:
    """Microseconds per step of each part, the run-aheads side by side."""
    header = ["part, us per step"]
    found: dict[tuple[str, str], dict[int, PartTime]] = {}
    for run_ahead in settings.run_aheads:
        header += [f"K={run_ahead}: all", "hidden", "exposed", "of step", "p99"]
        for part in of_run_ahead(turns, run_ahead).overlap.parts:
            found.setdefault((part.process, part.part), {})[run_ahead] = part
    rows = []
    for (process, name), by_run_ahead in found.items():
        row = [f"{process} {name}"]
        for run_ahead in settings.run_aheads:
            part = by_run_ahead.get(run_ahead, _NO_PART)
            row += [f"{time_us:.1f}" for time_us in (part.per_step_us, part.hidden_us, part.exposed_us)]
            row += [f"{part.share:.2%}", f"{part.p99_us:.0f}"]
        rows.append(row)
    return header, rows
