"""A picture of some steps: what every process did, the gaps in which the device waited, and one gap enlarged.

Needs matplotlib, which the extra `plot` installs; imported only when a picture is asked for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from albireo.shm.flight import FlightLog, Part
from albireo.trace.gantt_panel import COLOURS, GAP_COLOUR, Panel, draw_panel, readable
from albireo.trace.overlap import ACCOUNTS, measure
from albireo.trace.source import TraceError
from albireo.trace.steps import Steps
from albireo.trace.window import overlapping

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES: Final = (".png", ".svg")
INCHES: Final = (16.0, 5.0)
DOTS_PER_INCH: Final = 100
MARGIN: Final = 0.05
"""Of the steps' duration, shown before the first and behind the last."""
ENLARGED_NS: Final = 500_000
"""Shown beside the enlarged gap, at least: where the coordinator's parts lie that the gap does not wait for."""


def draw_gantt(path: Path, logs: Sequence[FlightLog], steps: Steps, title: str) -> None:
    """Draws steps into a .png or .svg of 1600 x 500 pixels. Raises TraceError without matplotlib or for another kind of
    file, OSError where the file cannot be written."""
    if path.suffix not in SUFFIXES:
        raise TraceError(f"--gantt makes .png and .svg files, not {path.name}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise TraceError("pictures need matplotlib: pip install albireo[plot]") from None
    first_ns, last_ns = int(steps.begin_ns[0]) - max(int(steps.gap_ns[0]), 0), int(steps.end_ns[-1])
    margin_ns = int((last_ns - first_ns) * MARGIN)
    begin_ns, end_ns = first_ns - margin_ns, last_ns + margin_ns
    shown = [log for log in overlapping(logs, begin_ns, end_ns) if log.records.size]
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    waits = len(steps.timed()) > 0
    panels = figure.subplots(1, 2, width_ratios=[3, 1]) if waits else [figure.subplots()]
    draw_panel(Panel(panels[0], shown, begin_ns, end_ns), name_parts=False)
    panels[0].set_title(f"{title}\n{_facts(logs, steps)}", fontsize=12, loc="left", pad=18)
    panels[0].set_xlabel("milliseconds (arrows: from a step's plan to the device's work on it)")
    if waits:
        gap_begin_ns, gap_end_ns = _typical_gap(steps)
        around_ns = max(ENLARGED_NS, gap_end_ns - gap_begin_ns)
        draw_panel(Panel(panels[1], shown, gap_begin_ns - around_ns // 2, gap_end_ns + around_ns), name_parts=True)
        panels[1].set_yticks([])
        panels[1].set_title(f"enlarged: a gap of {(gap_end_ns - gap_begin_ns) / 1e3:.0f} µs", fontsize=11, loc="left")
    _explain_colours(figure, shown)
    figure.savefig(path)


def _facts(logs: Sequence[FlightLog], steps: Steps) -> str:
    least, most = int(steps.num_tokens.min()), int(steps.num_tokens.max())
    tokens = f"{least} tokens each" if least == most else f"{least} to {most} tokens"
    numbers = f"steps {steps.number[0]} to {steps.number[-1]}, {tokens}"
    timed = steps.timed()
    if not len(timed):
        return numbers
    account = measure(logs, timed)
    return (
        f"{numbers}; a step takes {account.period.mean_us / 1e3:.2f} ms, in which the device waits "
        f"{account.gap.mean_us:.0f} µs: {account.gap_share:.1%} exposed"
    )


def _typical_gap(steps: Steps) -> tuple[int, int]:
    """Begin and end of the one of median length."""
    timed = steps.timed()
    index = int(np.argsort(timed.gap_ns, kind="stable")[len(timed) // 2])
    return int(timed.gaps.begin_ns[index]), int(timed.gaps.end_ns[index])


def _explain_colours(figure: "Figure", logs: Sequence[FlightLog]) -> None:
    from matplotlib.patches import Patch

    present = {Part(number) for log in logs for number in np.unique(log.records["part"]).tolist()}.difference(ACCOUNTS)
    handles = [Patch(color=COLOURS[part], label=readable(part)) for part in COLOURS if part in present]
    handles.append(Patch(facecolor=GAP_COLOUR, alpha=0.5, label="the device waits, with work to do"))
    figure.legend(handles=handles, loc="outside lower center", ncols=-(-len(handles) // 2), fontsize=9, frameon=False)
