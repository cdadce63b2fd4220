"""What was found: rows of one table, written anew after every section, and every detail as JSON."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

NOTE_WIDTH = 118
COLUMNS = ("section", "what", "value", "against", "")


class Row(Struct, frozen=True):
    """A line of the table."""

    section: str
    what: str
    value: str
    against: str = ""
    """What the value is measured against: a floor, a limit, another program."""
    verdict: str = ""
    notes: tuple[str, ...] = ()
    """Lines below it: failures, a log's tail."""


def table(rows: Sequence[Row], heading: Sequence[str]) -> str:
    """Text of the whole table; columns as wide as their widest cell, a rule between sections."""
    cells = [COLUMNS, *((row.section, row.what, row.value, row.against, row.verdict) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    lines = [*heading, _line(COLUMNS, widths)]
    rule = "-" * len(_line(tuple("x" * width for width in widths), widths))
    previous = ""
    for row in rows:
        if row.section != previous:
            lines.append(rule)
        shown = row.section if row.section != previous else ""
        previous = row.section
        lines.append(_line((shown, row.what, row.value, row.against, row.verdict), widths))
        for note in row.notes:
            lines += textwrap.wrap(note, NOTE_WIDTH, initial_indent="    | ", subsequent_indent="    |   ")
    return "\n".join([*lines, rule])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


class Report:
    """Rows in the order of the sections, whatever the order in which they come; kept on disk all the time."""

    def __init__(self, out: Path, sections: Sequence[str], heading: Sequence[str]) -> None:
        self._out, self._sections = out, sections
        self.heading = list(heading)
        self.rows: list[Row] = []
        self.details: dict[str, object] = {}

    def add(self, rows: Sequence[Row], details: dict[str, object] | None = None) -> None:
        self.rows += rows
        for name, value in (details or {}).items():
            self.details[name] = value
        self.save()

    def text(self) -> str:
        known = {section: index for index, section in enumerate(self._sections)}
        return table(sorted(self.rows, key=lambda row: known.get(row.section, len(known))), self.heading)

    def save(self) -> None:
        (self._out / "table.txt").write_text(self.text() + "\n")
        saved = {"heading": self.heading, "rows": self.rows, "details": self.details}
        (self._out / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(saved), indent=1) + b"\n")
