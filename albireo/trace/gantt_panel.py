"""One panel of the picture: a lane per process over a stretch of time. matplotlib's axes are handed in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from albireo.shm.flight import DEVICE_PARTS, FlightLog, Part
from albireo.trace.steps import records_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: Final = {
    Part.FORWARD: "#1f4e9c",
    Part.SAMPLE: "#6f42a8",
    Part.COLLECTIVE: "#111827",
    Part.SWAP: "#0f766e",
    Part.RECEIVE: "#9ca3af",
    Part.SCHEDULE: "#2e9d57",
    Part.WRITE_PLAN: "#84cc16",
    Part.DOORBELL: "#facc15",
    Part.FETCH_PLAN: "#5eead4",
    Part.INPUT_PREP: "#22b8cf",
    Part.RESULT_WRITE: "#fb923c",
    Part.CONFIRM: "#e07b00",
    Part.DETOKENISE: "#ec4899",
    Part.SEND: "#a98467",
    Part.COMPILE: "#c4b5fd",
    Part.MASK: "#f472b6",
}
"""Device parts are dark, host parts bright."""
GAP_COLOUR: Final = "#dc2626"
HALF_HEIGHT: Final = 0.36
"""Of a lane's bars; lanes are 1 apart."""
MOST_GAP_LABELS: Final = 12
STEP_LABEL_SHARE: Final = 0.05
PART_LABEL_SHARE: Final = 0.03
"""Of the panel's width: narrower bars are not labelled."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Where and what to draw. `logs`: a lane each, of the records in this stretch of time."""

    axes: "Axes"
    logs: Sequence[FlightLog]
    begin_ns: int
    end_ns: int

    @property
    def width_ns(self) -> int:
        return self.end_ns - self.begin_ns

    def at_ms(self, time_ns: float) -> float:
        return (time_ns - self.begin_ns) / 1e6

    def lane(self, name: str) -> int:
        return [log.name for log in self.logs].index(name)

    def visible(self, records: npt.NDArray[Any]) -> Iterator[tuple[int, int, int]]:
        """(step, begin, end) of those records that reach into the panel, cut off at its edges."""
        for step, begin_ns, end_ns, *_ in records.tolist():
            if begin_ns < self.end_ns and end_ns > self.begin_ns:
                yield step, max(begin_ns, self.begin_ns), min(end_ns, self.end_ns)


def draw_panel(panel: Panel, name_parts: bool) -> None:
    """`name_parts` writes the part's name into each host bar that has room, in place of gaps' lengths."""
    for lane, log in enumerate(panel.logs):
        _draw_lane(panel, lane, log, name_parts)
        _name_steps(panel, lane, log)
    _draw_gaps(panel, with_length=not name_parts)
    _draw_plan_arrows(panel)
    _dress(panel)


def _draw_lane(panel: Panel, lane: int, log: FlightLog, name_parts: bool) -> None:
    for part, colour in COLOURS.items():
        bars = list(panel.visible(log.records[log.records["part"] == part]))
        low, height = (-HALF_HEIGHT, 0.2) if part == Part.COLLECTIVE else (-HALF_HEIGHT, 2 * HALF_HEIGHT)
        # the edge keeps a part of a few microseconds visible
        panel.axes.broken_barh(
            [(panel.at_ms(begin_ns), (end_ns - begin_ns) / 1e6) for _, begin_ns, end_ns in bars],
            (lane + low, height),
            facecolor=colour,
            edgecolor=colour,
            linewidth=0.6,
            zorder=4 if part == Part.COLLECTIVE else 3,
        )
        if name_parts and part not in (*DEVICE_PARTS, Part.COLLECTIVE):
            for _, begin_ns, end_ns in bars:
                if end_ns - begin_ns > PART_LABEL_SHARE * panel.width_ns:
                    _write(panel, (begin_ns + end_ns) / 2, lane, readable(part), "black", rotation=90)


def _name_steps(panel: Panel, lane: int, log: FlightLog) -> None:
    work = log.records[np.isin(log.records["part"], DEVICE_PARTS)]
    for step in np.unique(work["step"]).tolist():
        spans = list(panel.visible(work[work["step"] == step]))
        if spans and spans[-1][2] - spans[0][1] > STEP_LABEL_SHARE * panel.width_ns:
            _write(panel, (spans[0][1] + spans[-1][2]) / 2, lane, f"step {step}", "white")


def _draw_gaps(panel: Panel, with_length: bool) -> None:
    gaps = list(panel.visible(records_of(panel.logs, "coordinator-0", Part.EXPOSED)))
    for _, begin_ns, end_ns in gaps:
        low_ms, high_ms = panel.at_ms(begin_ns), panel.at_ms(end_ns)
        panel.axes.axvspan(low_ms, high_ms, facecolor=GAP_COLOUR, alpha=0.22, edgecolor="none", zorder=1)
        panel.axes.axvspan(low_ms, high_ms, 0.955, 1, facecolor=GAP_COLOUR, edgecolor=GAP_COLOUR, linewidth=0.8)
        if with_length and len(gaps) <= MOST_GAP_LABELS:
            panel.axes.annotate(
                f"{(end_ns - begin_ns) / 1e3:.0f} µs",
                ((low_ms + high_ms) / 2, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                color=GAP_COLOUR,
                fontsize=9,
            )


def _draw_plan_arrows(panel: Panel) -> None:
    """From the end of a step's planning to the device's work on it: long where planning runs ahead."""
    plans = records_of(panel.logs, "coordinator-0", Part.SCHEDULE)
    work = records_of(panel.logs, "worker-0", Part.FORWARD)
    begun_ns = dict(zip(work["step"].tolist(), work["begin_ns"].tolist(), strict=True))
    for step, _, planned_ns in panel.visible(plans):
        if not planned_ns < begun_ns.get(step, 0) < panel.end_ns:
            continue
        start = (panel.at_ms(planned_ns), panel.lane("coordinator-0") + HALF_HEIGHT)
        stop = (panel.at_ms(begun_ns[step]), panel.lane("worker-0") - HALF_HEIGHT)
        style = {"arrowstyle": "-|>", "color": "#374151", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
        panel.axes.annotate("", stop, start, arrowprops=style, zorder=6)


def _dress(panel: Panel) -> None:
    axes = panel.axes
    axes.set_xlim(0, panel.width_ns / 1e6)
    axes.set_ylim(len(panel.logs) - 0.5, -0.62)
    axes.set_yticks(range(len(panel.logs)), [_lane_name(log) for log in panel.logs])
    axes.set_xlabel("milliseconds")
    axes.grid(axis="x", color="#e5e7eb", zorder=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _write(panel: Panel, at_ns: float, lane: int, text: str, colour: str, rotation: int = 0) -> None:
    panel.axes.text(
        panel.at_ms(at_ns), lane, text, ha="center", va="center", color=colour, fontsize=9, rotation=rotation, zorder=7
    )


def _lane_name(log: FlightLog) -> str:
    return f"{log.name}\n(device)" if log.name.startswith("worker") else log.name


def readable(part: Part) -> str:
    """`input prep` for INPUT_PREP."""
    return part.name.lower().replace("_", " ")
