"""The report's pictures, as SVG to stand within a page: text and axes in the page's own colours, so that they are
readable on light and on dark ground.

Needs matplotlib, which the extra `plot` installs; imported only when a report is asked for.
"""

import io
import operator
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from albireo.tune.choice import choose_of, value_of
from albireo.tune.conclusions import UNITS, model_of
from albireo.tune.figures import Ranged, TuneRecord, ranged, ranged_figure
from albireo.tune.table import FIGURES, percentile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES: Final = (7.2, 3.8)
_INK, _GRID = "#010203", "#040506"
"""Stand-ins that the page's colours take the place of."""
_PAGE_COLOURS: Final = {_INK: "currentColor", _GRID: "var(--grid)"}
BLUE, ORANGE, GREEN, PURPLE, RED = "#3b82d6", "#d98a24", "#2fa172", "#9a6bd0", "#d1495b"
SERIES: Final = (BLUE, ORANGE, GREEN, PURPLE, RED)
_BY_NAME: Final = {name: figure for name, figure, _ in FIGURES}
STYLE: Final[dict[str, Any]] = {
    "font.size": 10, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _GRID, "xtick.color": _INK,
    "ytick.color": _INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": _GRID,
    "axes.axisbelow": True, "xtick.major.size": 0, "ytick.major.size": 0, "svg.fonttype": "none", "axes.grid.axis": "y",
    "font.family": "sans-serif", "legend.frameon": False, "legend.fontsize": 9, "axes.titlesize": 10,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "axes.formatter.useoffset": False,
}  # fmt: skip


def draw_all(record: TuneRecord) -> dict[str, str]:
    """SVG by title."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    pictures = {
        "Throughput and goodput": _draw_throughput,
        "A decode step": _draw_step,
        "KV cache": _draw_kv,
        "Latency": _draw_latency,
    }
    if len(record.variants) > 1:
        pictures["Mechanisms off one by one"] = _draw_ablation
    found = {}
    for number, (title, draw) in enumerate(pictures.items()):
        style: Any = STYLE | {"svg.hashsalt": title}
        with mpl.rc_context(style):
            figure = Figure(figsize=INCHES, layout="constrained")
            draw(record, figure)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg")
        found[title] = embeddable(buffer.getvalue(), f"p{number}-", title)
    return found


def embeddable(svg: str, prefix: str, title: str) -> str:
    """Without what only a file of its own needs, addresses of vocabularies among it, and with ids that no other picture
    on the page has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = (
        re.sub(r'\bid="', f'id="{prefix}', svg)
        .replace("url(#", f"url(#{prefix}")
        .replace('href="#', f'href="#{prefix}')
    )
    svg = re.sub(r'<svg\b[^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{title}">', svg, count=1)
    for stand_in, colour in _PAGE_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg.strip()


def _draw_throughput(record: TuneRecord, figure: "Figure") -> None:
    with_slo = bool(record.settings.goodput)
    panels = figure.subplots(1, 2 if with_slo else 1, squeeze=False)[0]
    degrees = record.degrees()
    for axes, name in zip(panels, ("output tokens/s", "good requests/s"), strict=False):
        for colour, load in zip(_colours(), record.settings.loads, strict=False):
            values = {t: ranged_figure(record.load_figures(t, load), _BY_NAME[name]) for t in degrees}
            _line(axes, degrees, values, colour, f"rate {load}" if load != "trace" else "trace")
        _degree_axis(axes, degrees, name)
        axes.set_ylim(bottom=0)
        _legend(axes)
    choice = choose_of(record)
    if choice is not None:
        for axes in panels:
            axes.axvline(degrees.index(choice.degree), color=RED, lw=1, ls=":", zorder=0)
        panels[-1].set_title(f"t_e = {choice.degree}", color=RED, loc="right")


def _draw_step(record: TuneRecord, figure: "Figure") -> None:
    """The fit's parts stacked, the fit itself as a line, and what was measured as points."""
    axes = figure.subplots()
    degrees, model = record.degrees(), model_of(record)
    if model is not None:
        fitted = [t for t in degrees if t in model.measured_us]
        places = [degrees.index(t) for t in fitted]
        parts = {
            "scalable / t": ([model.scalable(t) for t in fitted], BLUE),
            "non-scalable": ([model.non_scalable_us] * len(fitted), ORANGE),
            "communication": ([model.communication(t) for t in fitted], PURPLE),
        }
        below = [0.0] * len(fitted)
        for name, (heights, colour) in parts.items():
            axes.bar(places, heights, 0.5, bottom=below, color=colour, alpha=0.65, label=name)
            below = [low + height for low, height in zip(below, heights, strict=True)]
        axes.plot(places, [model.predict(t) for t in fitted], color=_INK, lw=1.3, ls="--", label="fit")
    steps = {t: [turn.step for turn in record.turns_of(t) if turn.step is not None] for t in degrees}
    for name, colour, part in (("measured", RED, "period_us"), ("exposed", GREEN, "exposed_us")):
        values = {t: ranged_figure(found, operator.attrgetter(part)) for t, found in steps.items()}
        _line(axes, degrees, values, colour, name, joined=False)
    _degree_axis(axes, degrees, f"microseconds, {record.settings.fit_batch} rows")
    axes.set_ylim(bottom=0)
    if model is not None and model.is_exact and not model.misses:
        axes.set_title("as many parameters as points: exact by construction", loc="left")
    _legend(axes)


def _draw_kv(record: TuneRecord, figure: "Figure") -> None:
    usage, capacity = figure.subplots(1, 2)
    degrees, load = record.degrees(), _heaviest(record)
    peaks = {t: ranged_figure(record.load_figures(t, load), lambda f: 100 * f.kv_usage_peak) for t in degrees}
    _line(usage, degrees, peaks, BLUE, "peak usage")
    _degree_axis(usage, degrees, "KV usage at peak, % of a replica")
    usage.set_ylim(0, 105)
    events = usage.twinx()
    events.grid(visible=False)
    preempted = {t: ranged_figure(record.load_figures(t, load), lambda f: float(f.preemptions)) for t in degrees}
    _line(events, degrees, preempted, RED, "preemptions")
    events.set_ylim(0, max(1.0, events.get_ylim()[1]))
    events.set_ylabel("preemptions", color=RED)
    usage.yaxis.label.set_color(BLUE)
    turns = {t: record.turns_of(t)[0] for t in degrees}
    places = range(len(degrees))
    capacity.bar(places, [turns[t].kv_tokens for t in degrees], 0.5, color=GREEN, alpha=0.65, label="one replica")
    total = {t: ranged([float(turns[t].kv_tokens * turns[t].num_replicas)]) for t in degrees}
    _line(capacity, degrees, total, PURPLE, "all replicas")
    _degree_axis(capacity, degrees, "tokens of KV cache")
    capacity.set_ylim(bottom=0)
    _legend(capacity)


def _draw_latency(record: TuneRecord, figure: "Figure") -> None:
    degrees = record.degrees()
    for axes, metric in zip(figure.subplots(1, 2), ("ttft", "tpot"), strict=True):
        for colour, load in zip(_colours(), record.settings.loads, strict=False):
            for name, style in (("p50", "-"), ("p99", "--")):
                values = {t: ranged_figure(record.load_figures(t, load), percentile(metric, name)) for t in degrees}
                of = "" if len(record.settings.loads) == 1 else f", rate {load}"
                _line(axes, degrees, values, colour, f"{name}{of}", style=style)
        _degree_axis(axes, degrees, f"{metric.upper()}, ms")
        axes.set_ylim(bottom=0)
        if metric in record.settings.goodput:
            axes.axhline(record.settings.goodput[metric], color=RED, lw=1, ls=":", label="target")
        _legend(axes)


def _draw_ablation(record: TuneRecord, figure: "Figure") -> None:
    axes = figure.subplots()
    degrees = tuple(sorted({degree for variant in record.variants for degree in record.degrees(variant)}))
    for colour, variant in zip(_colours(), record.variants, strict=False):
        values = {t: value_of(record, t, None, variant) for t in degrees}
        choice = choose_of(record, None, variant)
        chosen = "" if choice is None else f", t_e = {choice.degree}"
        _line(axes, degrees, values, colour, variant + chosen)
        if choice is not None:
            at = (degrees.index(choice.degree), choice.value.median)
            axes.plot(*at, marker="o", ms=11, mfc="none", mec=colour, mew=1.5)
    _degree_axis(axes, degrees, UNITS[record.settings.objective])
    axes.set_ylim(bottom=0)
    _legend(axes)


def _line(
    axes: "Axes",
    degrees: tuple[int, ...],
    values: Mapping[int, Ranged | None],
    colour: str,
    label: str,
    joined: bool = True,
    style: str = "-",
) -> None:
    """Medians, with the range of the rounds as bars."""
    known = {t: value for t, value in values.items() if value is not None}
    if not known:
        return
    middle = [value.median for value in known.values()]
    spread = [
        [value.median - value.low for value in known.values()],
        [value.high - value.median for value in known.values()],
    ]
    axes.errorbar(
        [degrees.index(t) for t in known], middle, spread, color=colour, label=label, fmt="o",
        ls=style if joined else "",
        ms=5, lw=1.6, elinewidth=1.1, capsize=3,
    )  # fmt: skip


def _degree_axis(axes: "Axes", degrees: tuple[int, ...], label: str) -> None:
    axes.set_xticks(range(len(degrees)), [str(t) for t in degrees])
    axes.set_xlim(-0.6, len(degrees) - 0.4)
    axes.set_xlabel("tensor-parallel degree t")
    axes.set_ylabel(label)


def _legend(axes: "Axes") -> None:
    handles, _ = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend()


def _colours() -> tuple[str, ...]:
    return SERIES * 13


def _heaviest(record: TuneRecord) -> str:
    """The load whose figures show most of the contention."""
    rates = {load: float("inf") if load == "trace" else float(load) for load in record.settings.loads}
    return max(rates, key=lambda load: rates[load])
