"""A picture of a run: how latencies are distributed, and tokens per second as time goes by.

Needs matplotlib, which the extra `plot` installs; imported only when a picture is asked for.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from albireo.bench.metrics import RunMetrics
from albireo.bench.outcome import RequestOutcome
from albireo.bench.serve import ServeRun
from albireo.bench.settings import SettingsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES: Final = (".png", ".svg")
INCHES: Final = (12.0, 7.0)
DOTS_PER_INCH: Final = 130
INK, FAINT, GRID = "#24292f", "#6e7781", "#e4e7eb"
COLOURS: Final = {"ttft": "#2f6fde", "itl": "#d9912b", "e2el": "#2c9a6b", "rate": "#2f6fde", "running": "#d9912b"}
TITLES: Final = {"ttft": "Time to first token", "itl": "Between two chunks", "e2el": "Whole request"}
NUM_BINS: Final = 120
"""Of the run's duration, in which tokens are counted."""


def check_plot(path: str) -> None:
    """Before the run, so that none is lost. Raises SettingsError for a kind of file that cannot be made, or without
    matplotlib."""
    if Path(path).suffix not in SUFFIXES:
        raise SettingsError(f"--plot makes {' and '.join(SUFFIXES)} files, not {path!r}")
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingsError("--plot needs matplotlib: pip install 'albireo[plot]'")


def draw_run(path: Path, run: ServeRun, metrics: RunMetrics) -> None:
    """Writes the file. Raises OSError."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 10, "text.color": INK, "axes.labelcolor": FAINT, "axes.edgecolor": GRID, "xtick.color": FAINT,
        "ytick.color": FAINT, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.color": GRID, "axes.axisbelow": True, "xtick.major.size": 0, "ytick.major.size": 0,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
        panels = figure.subplot_mosaic([["ttft", "itl", "e2el"], ["rate", "rate", "rate"]], height_ratios=[1, 1])
        for name, title in TITLES.items():
            _draw_distribution(panels[name], metrics.latencies_ms[name], title, COLOURS[name])
        panels["ttft"].set_ylabel("share that took no longer")
        _draw_rate(panels["rate"], [outcome for outcome in run.outcomes if outcome.error is None])
        figure.suptitle(_headline(run, metrics), x=0.01, ha="left", fontsize=12, fontweight="bold")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _headline(run: ServeRun, metrics: RunMetrics) -> str:
    failed = f", {metrics.failed} failed" if metrics.failed else ""
    return (
        f"{Path(run.model).name}: {metrics.completed} requests{failed} in {metrics.duration_s:.1f} s, "
        f"{metrics.output_throughput:,.0f} output tokens/s, up to {metrics.peak_concurrency} at once"
    )


def _draw_distribution(axes: "Axes", values_ms: Sequence[float], title: str, colour: str) -> None:
    """The cumulative distribution, with median and 99th percentile marked. The axis ends a little behind the 99.9th:
    one straggler would flatten all the rest."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("milliseconds")
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter("{x:.0%}")
    if not values_ms:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color=FAINT)
        return
    values = np.sort(np.asarray(values_ms))
    shares = np.arange(1, len(values) + 1) / len(values)
    axes.plot(np.concatenate([values[:1], values]), np.concatenate([[0.0], shares]), color=colour, lw=1.8,
              drawstyle="steps-post")  # fmt: skip
    axes.fill_between(values, shares, step="post", color=colour, alpha=0.08, lw=0)
    median, p99, most = (float(np.percentile(values, p)) for p in (50, 99, 99.9))
    low = float(values[0])
    width = max(most - low, most * 0.02, 1e-3)
    axes.set_xlim(max(0.0, low - 0.06 * width), most + 0.08 * width)
    axes.plot([median, p99], [0.5, 0.99], "o", color=colour, ms=5)
    axes.set_title(f"median {median:,.3g}, p99 {p99:,.3g}", loc="right", fontsize=10, color=colour)


def _draw_rate(axes: "Axes", outcomes: Sequence[RequestOutcome]) -> None:
    """Output tokens per second, and behind them how many requests were under way."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title("Output tokens per second", loc="left", fontsize=11, color=COLOURS["rate"])
    axes.set_xlabel("seconds since the first request")
    axes.set_ylim(bottom=0)
    if not outcomes:
        return
    first_ns = min(outcome.start_ns for outcome in outcomes)
    end_s = (max(outcome.end_ns for outcome in outcomes) - first_ns) / 1e9
    edges = np.linspace(0, max(end_s, 1e-9), NUM_BINS + 1)
    times_s, weights = token_times_s(outcomes, first_ns)
    rate = np.histogram(times_s, edges, weights=weights)[0] / np.diff(edges)
    middles = (edges[:-1] + edges[1:]) / 2
    axes.fill_between(middles, rate, color=COLOURS["rate"], alpha=0.15, lw=0)
    axes.plot(middles, rate, color=COLOURS["rate"], lw=1.6)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(0, float(rate.max(initial=0)) * 1.12 or 1)
    axes.set_xlim(0, end_s)
    beside = axes.twinx()
    beside.grid(visible=False)
    under_way = [sum(o.start_ns - first_ns <= t * 1e9 < o.end_ns - first_ns for o in outcomes) for t in middles]
    beside.plot(middles, under_way, color=COLOURS["running"], lw=1.2, drawstyle="steps-mid")
    beside.set_ylim(0, max(under_way) * 1.3 or 1)
    beside.yaxis.set_major_locator(MaxNLocator(integer=True))
    beside.set_title("requests under way", loc="right", fontsize=11, color=COLOURS["running"])


def token_times_s(
    outcomes: Sequence[RequestOutcome], first_ns: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """When each chunk came, in seconds after `first_ns`, and how many tokens it stands for."""
    times, weights = [], []
    for outcome in outcomes:
        begin_ns = outcome.start_ns + outcome.ttft_ns - first_ns
        chunks = begin_ns + np.concatenate([[0], np.cumsum(np.asarray(outcome.itl_ns, dtype=np.int64))])
        times.append(chunks / 1e9)
        weights.append(np.full(len(chunks), outcome.output_tokens / len(chunks)))
    return np.concatenate(times), np.concatenate(weights)
