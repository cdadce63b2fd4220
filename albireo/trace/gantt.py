"""A picture of some steps: a lane per process, device work below, and the gaps in which the device waited.

Needs matplotlib, which the extra `plot` installs; imported only when a picture is asked for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from albireo.shm.flight import DEVICE_PARTS, FlightLog, Part
from albireo.trace.overlap import ACCOUNTS, measure
from albireo.trace.source import TraceError
from albireo.trace.steps import Steps, records_of
from albireo.trace.window import overlapping

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Final = {
    Part.FORWARD: "#1f4e9c",
    Part.SAMPLE: "#6f42a8",
    Part.COLLECTIVE: "#111827",
    Part.RECEIVE: "#9ca3af",
    Part.SCHEDULE: "#2e9d57",
    Part.WRITE_PLAN: "#84cc16",
    Part.DOORBELL: "#facc15",
    Part.FETCH_PLAN: "#5eead4",
    Part.INPUT_PREP: "#0891b2",
    Part.RESULT_WRITE: "#f59e0b",
    Part.CONFIRM: "#d97706",
    Part.DETOKENISE: "#ec4899",
    Part.SEND: "#94785a",
}
"""Device parts are dark; host parts bright."""
GAP_COLOUR: Final = "#dc2626"
INCHES: Final = (16.0, 5.0)
DOTS_PER_INCH: Final = 100
HALF_HEIGHT: Final = 0.36
"""Of a lane's bars; lanes are 1 apart."""
NARROW_GAP_SHARE: Final = 0.012
"""Of the picture's width: narrower gaps are marked and not labelled."""
MARGIN: Final = 0.08
"""Of the steps' duration, shown before the first and behind the last."""


def draw_gantt(path: Path, logs: Sequence[FlightLog], steps: Steps, title: str) -> None:
    """Draws consecutive steps into a .png or .svg of 1600 x 500 pixels. Raises TraceError without matplotlib or for
    another kind of file, OSError where the file cannot be written."""
    if path.suffix not in (".png", ".svg"):
        raise TraceError(f"--gantt makes .png and .svg files, not {path.name}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise TraceError("pictures need matplotlib: pip install albireo[plot]") from None
    first_ns = int(steps.begin_ns[0]) - max(int(steps.gap_ns[0]), 0)
    margin_ns = int((int(steps.end_ns[-1]) - first_ns) * MARGIN)
    begin_ns, end_ns = first_ns - margin_ns, int(steps.end_ns[-1]) + margin_ns
    shown = [log for log in overlapping(logs, begin_ns, end_ns) if log.records.size]
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for lane, log in enumerate(shown):
        _draw_lane(axes, lane, log, begin_ns)
    _draw_gaps(axes, shown, begin_ns, end_ns)
    _draw_plan_arrows(axes, shown, begin_ns, end_ns)
    _label_steps(axes, shown, begin_ns, end_ns)
    _finish(figure, axes, shown, (end_ns - begin_ns) / 1e6, f"{title}\n{_facts(logs, steps)}")
    figure.savefig(path)


def _facts(logs: Sequence[FlightLog], steps: Steps) -> str:
    numbers = f"steps {steps.number[0]} to {steps.number[-1]}, {steps.num_tokens[-1]} tokens each"
    if np.unique(steps.num_tokens).size > 1:
        numbers = f"steps {steps.number[0]} to {steps.number[-1]}, {steps.num_tokens.min()} to {steps.num_tokens.max()} tokens"
    timed = steps.timed()
    if not len(timed):
        return numbers
    account = measure(logs, timed)
    return (
        f"{numbers}; a step takes {account.period.mean_us / 1e3:.2f} ms, of which the device waits "
        f"{account.gap.mean_us:.0f} µs: {account.gap_share:.1%} exposed"
    )


def _draw_lane(axes: "Axes", lane: int, log: FlightLog, begin_ns: int) -> None:
    for part, colour in COLOURS.items():
        records = log.records[log.records["part"] == part]
        if not records.size:
            continue
        low, height = (-HALF_HEIGHT, 0.25) if part == Part.COLLECTIVE else (-HALF_HEIGHT, 2 * HALF_HEIGHT)
        starts_ms = (records["begin_ns"] - begin_ns) / 1e6
        lengths_ms = (records["end_ns"] - records["begin_ns"]) / 1e6
        # the edge keeps a part of a few microseconds visible
        axes.broken_barh(
            list(zip(starts_ms.tolist(), lengths_ms.tolist(), strict=True)),
            (lane + low, height),
            facecolor=colour,
            edgecolor=colour,
            linewidth=0.6,
            zorder=4 if part == Part.COLLECTIVE else 3,
        )


def _draw_gaps(axes: "Axes", logs: Sequence[FlightLog], begin_ns: int, end_ns: int) -> None:
    exposed = records_of(logs, "coordinator-0", Part.EXPOSED)
    for from_ns, to_ns in zip(exposed["begin_ns"].tolist(), exposed["end_ns"].tolist(), strict=True):
        low_ms, high_ms = (from_ns - begin_ns) / 1e6, (to_ns - begin_ns) / 1e6
        axes.axvspan(low_ms, high_ms, facecolor=GAP_COLOUR, alpha=0.22, edgecolor="none", zorder=1)
        axes.axvspan(low_ms, high_ms, ymin=0.955, facecolor=GAP_COLOUR, edgecolor=GAP_COLOUR, linewidth=0.8, zorder=5)
        if to_ns - from_ns > NARROW_GAP_SHARE * (end_ns - begin_ns):
            axes.annotate(
                f"{(to_ns - from_ns) / 1e3:.0f} µs",
                ((low_ms + high_ms) / 2, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                color=GAP_COLOUR,
                fontsize=9,
                annotation_clip=True,
            )


def _draw_plan_arrows(axes: "Axes", logs: Sequence[FlightLog], begin_ns: int, end_ns: int) -> None:
    """From a step's plan to the device's work on it: long where planning runs ahead."""
    lanes = {log.name: lane for lane, log in enumerate(logs)}
    plans = records_of(logs, "coordinator-0", Part.SCHEDULE)
    work = records_of(logs, "worker-0", Part.FORWARD)
    begun_ns = dict(zip(work["step"].tolist(), work["begin_ns"].tolist(), strict=True))
    for step, planned_ns in zip(plans["step"].tolist(), plans["end_ns"].tolist(), strict=True):
        if step in begun_ns and begin_ns < begun_ns[step] < end_ns and planned_ns > begin_ns:
            start = ((planned_ns - begin_ns) / 1e6, lanes["coordinator-0"] + HALF_HEIGHT)
            stop = ((begun_ns[step] - begin_ns) / 1e6, lanes["worker-0"] - HALF_HEIGHT)
            style = {"arrowstyle": "-|>", "color": "#374151", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", stop, start, arrowprops=style, zorder=6)


def _label_steps(axes: "Axes", logs: Sequence[FlightLog], begin_ns: int, end_ns: int) -> None:
    for lane, log in enumerate(logs):
        work = log.records[np.isin(log.records["part"], DEVICE_PARTS)]
        for step in np.unique(work["step"]).tolist():
            mine = work[work["step"] == step]
            from_ns, to_ns = max(int(mine["begin_ns"].min()), begin_ns), min(int(mine["end_ns"].max()), end_ns)
            if to_ns - from_ns > 0.04 * (end_ns - begin_ns):
                at_ms = ((from_ns + to_ns) / 2 - begin_ns) / 1e6
                axes.text(at_ms, lane, f"step {step}", ha="center", va="center", color="white", fontsize=10, zorder=7)


def _finish(figure: "Figure", axes: "Axes", logs: Sequence[FlightLog], width_ms: float, title: str) -> None:
    from matplotlib.patches import Patch

    axes.set_xlim(0, width_ms)
    axes.set_ylim(len(logs) - 0.5, -0.62)
    axes.set_yticks(range(len(logs)), [_lane_name(log) for log in logs])
    axes.set_xlabel("milliseconds")
    axes.grid(axis="x", color="#e5e7eb", zorder=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, fontsize=12, loc="left", pad=18)
    present = {Part(number) for log in logs for number in np.unique(log.records["part"]).tolist()}
    handles = [
        Patch(color=COLOURS[part], label=part.name.lower().replace("_", " "))
        for part in COLOURS
        if part in present and part not in ACCOUNTS
    ]
    handles.append(Patch(facecolor=GAP_COLOUR, alpha=0.5, label="device waits with work to do"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 7), fontsize=9, frameon=False)


def _lane_name(log: FlightLog) -> str:
    return f"{log.name}\n(device)" if log.name.startswith("worker") else log.name
