"""The result as one HTML file that needs nothing else: no script, no font, no picture from elsewhere."""

import importlib.util
from collections.abc import Sequence
from html import escape
from pathlib import Path

from albireo.bench.settings import SettingsError
from albireo.tune.conclusions import ablation_sentences, choice_sentences, fit_sentences
from albireo.tune.figures import TuneRecord
from albireo.tune.table import Rows, load_rows, notes, recommended, refusal_lines, step_rows
from albireo.tune.variants import AS_GIVEN

_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #24292f; --faint: #6e7781; --grid: #dfe3e8;
  --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0f1318; --ink: #dfe5ec; --faint: #93a0ad; --grid: #2f3844; --card: #171d25; }
}
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.faint { color: var(--faint); } .first { font-size: 1.15rem; font-weight: 600; }
pre { background: var(--card); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; max-width: 48rem; height: auto; } svg text { font-family: system-ui, sans-serif !important; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; }
"""


def check_report(path: Path) -> None:
    """Before the run, so that none is lost. Raises SettingsError for a file that cannot be made."""
    if path.suffix not in (".html", ".htm"):
        raise SettingsError(f"--report makes .html files, not {str(path)!r}")
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingsError("--report needs matplotlib: pip install 'albireo[plot]'")


def write_report(path: Path, record: TuneRecord) -> None:
    """Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(record), encoding="utf-8")


def render(record: TuneRecord) -> str:
    """The whole page."""
    from albireo.tune.plots import draw_all

    model = Path(record.settings.model).name
    pictures = draw_all(record)
    texts = {
        "A decode step": fit_sentences(record),
        "Mechanisms off one by one": ablation_sentences(record),
    }
    sections = [_section(title, [svg, *_paragraphs(texts.get(title, []))]) for title, svg in pictures.items()]
    title = f"{model} on {record.settings.num_gpus} devices"
    return "\n".join([
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}: t_e</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{escape(_about(record))}</p>',
        *_verdict(record),
        *sections,
        _section("Figures", _tables(record)),
        _section("Read this before believing them", _notes(record)),
        _section("How it was measured", _provenance(record)),
        "</body></html>\n",
    ])  # fmt: skip


def _verdict(record: TuneRecord) -> list[str]:
    first, *rest = choice_sentences(record)
    command = recommended(record)
    pasted = [] if command is None else [f"<pre>{escape(command)}</pre>"]
    return [f'<p class="first">{escape(first)}</p>', *_paragraphs(rest), *pasted]


def _about(record: TuneRecord) -> str:
    rounds = record.settings.rounds
    medians = f"medians of {rounds} rounds, range in parentheses" if rounds > 1 else "one round"
    machine = record.machine
    return (
        f"{record.date}, albireo {record.versions.get('albireo', '?')}. {machine.get('cpu', '?')}, "
        f"{machine.get('cores', '?')} cores, {machine.get('memory_gib', '?')} GiB, {machine.get('system', '?')}; "
        f"{medians}."
    )


def _tables(record: TuneRecord) -> list[str]:
    found = []
    for variant in record.variants:
        of = "" if variant == AS_GIVEN else f"{variant}, "
        for load in record.settings.loads:
            name = "recorded arrivals" if load == "trace" else f"rate {load}"
            found.append(_table(f"{of}{name}", *load_rows(record, load, variant)))
        found.append(_table(f"{of}decode steps of {record.settings.fit_batch} rows", *step_rows(record, variant)))
        if variant != AS_GIVEN:
            found += _paragraphs(fit_sentences(record, variant))
    return found


def _notes(record: TuneRecord) -> list[str]:
    lines = [*refusal_lines(record), *notes(record)]
    if not lines:
        return ['<p class="faint">Nothing to say against them.</p>']
    return ["<ul>", *(f"<li>{escape(line)}</li>" for line in lines), "</ul>"]


def _provenance(record: TuneRecord) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return [f"<pre>{escape(record.command)}</pre>", f'<p class="faint">{escape(versions)}</p>']


def _table(caption: str, header: Sequence[str], rows: Rows) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _section(title: str, content: Sequence[str]) -> str:
    return "\n".join([f"<section><h2>{escape(title)}</h2>", *content, "</section>"])


def _paragraphs(lines: Sequence[str]) -> list[str]:
    return [f"<p>{escape(line)}</p>" for line in lines]
