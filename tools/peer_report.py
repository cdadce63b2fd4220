"""Medians and ratios of an interleaved comparison, as a Markdown table."""

import re
from collections.abc import Sequence
from statistics import median

from msgspec import Struct

from albireo.bench.machine import describe_machine


class Turn(Struct, frozen=True):
    """One server's run of one workload in one round."""

    workload: str
    sampling: str
    server: str
    round: int
    server_cores: float | None
    """CPU time of the server's processes over the run's duration; None when it was not launched by the tool."""
    result: dict[str, object]
    """As `bench serve` saves it."""

    def figure(self, name: str) -> float:
        return float(str(self.result.get(name, "nan")))


class ServerFacts(Struct, frozen=True):
    name: str
    command: str
    start_s: float | None
    memory_gib: float | None
    """After the last round."""


COLUMNS = (
    ("output tok/s", "output_throughput", "{:.0f}"),
    ("TTFT ms", "mean_ttft_ms", "{:.1f}"),
    ("TPOT ms", "mean_tpot_ms", "{:.2f}"),
    ("p99 ITL ms", "p99_itl_ms", "{:.1f}"),
    ("whole run s", "duration", "{:.2f}"),
)


def markdown(turns: Sequence[Turn], facts: Sequence[ServerFacts], reference: str, header: Sequence[str]) -> str:
    """Median over rounds, the range in brackets, and the ratio of medians to `reference`'s."""
    lines = [*(f"{line}  " for line in header), *_machine_lines(), ""]
    titles = ["workload", "sampling", "server", *(title for title, _, _ in COLUMNS), "server cores", "client core"]
    lines += [_row(titles), _row(["---"] * len(titles))]
    for workload, sampling in dict.fromkeys((turn.workload, turn.sampling) for turn in turns):
        of_case = [turn for turn in turns if (turn.workload, turn.sampling) == (workload, sampling)]
        against = [turn for turn in of_case if turn.server == reference]
        for server in dict.fromkeys(fact.name for fact in facts):
            own = [turn for turn in of_case if turn.server == server]
            if own:
                lines.append(_row([workload, sampling, server, *_cells(own, against, server == reference)]))
    lines += ["", _row(["server", "command", "start s", "memory GiB (PSS)"]), _row(["---"] * 4)]
    lines += [_row([f.name, f"`{f.command}`", _or_dash(f.start_s), _or_dash(f.memory_gib)]) for f in facts]
    return "\n".join(lines + _remark_lines(turns)) + "\n"


def without_folders(command: str) -> str:
    """Absolute paths cut to their last part: where a file lies on one machine says nothing on another."""
    return re.sub(r"(?<![\w.:/}])/(?:[^\s/=]+/)+", "", command)


def _cells(own: Sequence[Turn], against: Sequence[Turn], is_reference: bool) -> list[str]:
    cells = []
    for _, name, form in COLUMNS:
        values = [turn.figure(name) for turn in own]
        cell = form.format(median(values))
        if len(values) > 1:
            cell += f" ({form.format(min(values))}–{form.format(max(values))})"
        if against and not is_reference:
            base = median(turn.figure(name) for turn in against)
            cell += f" **{median(values) / base:.2f}x**" if base else ""
        cells.append(cell)
    cores = [turn.server_cores for turn in own if turn.server_cores is not None]
    client = [turn.result["client"] for turn in own]
    shares = [float(part["cpu_share"]) for part in client if isinstance(part, dict)]
    return [*cells, f"{median(cores):.2f}" if cores else "-", f"{median(shares):.2f}"]


def _remark_lines(turns: Sequence[Turn]) -> list[str]:
    """What `bench serve` said about its own figures, once per workload and server."""
    said: dict[str, None] = {}
    for turn in turns:
        remarks = turn.result["remarks"]
        for remark in remarks if isinstance(remarks, list) else []:
            said[f"- {turn.workload} {turn.sampling} {turn.server}, round {turn.round}: {remark}"] = None
    return ["", "Remarks of the client:", *said] if said else []


def _machine_lines() -> list[str]:
    machine = describe_machine()
    return [f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"]


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
