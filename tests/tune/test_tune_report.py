"""The report is one HTML file that stands alone; saved figures make it again."""

import functools
import operator
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from tune_records import load, record, step, throughputs, turn

from albireo.bench.settings import SettingsError
from albireo.cli import main
from albireo.tune.figures import Refusal, TuneRecord
from albireo.tune.html_report import check_report, render
from albireo.tune.saved import load as read_saved
from albireo.tune.saved import save
from albireo.tune.variants import AS_GIVEN, BOTH_OFF

VOID = {"meta", "br", "img", "hr", "input", "link"}


class Outline(HTMLParser):
    """Raises AssertionError where tags do not close in order or an id is there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.seen: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        for name, value in attrs:
            if name == "id":
                assert value not in self.ids, f"id {value} twice"
                self.ids.add(value or "")
            if name in ("href", "src"):
                self.links.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def full_record() -> TuneRecord:
    turns = [
        turn(degree, load(100.0 * degree + number, "inf", goodput=2.0 * degree), load(90.0, "4", goodput=1.0),
             number=number, variant=variant, cost=step(1000 / degree + 100, 5.0))
        for number in (1, 2) for variant in (AS_GIVEN, BOTH_OFF) for degree in (1, 2, 4)
    ]  # fmt: skip
    refusals = [Refusal(AS_GIVEN, 4, 1, "no room for <weights> & all")]
    return record(turns, "--request-rate", "inf", "4", "--goodput", "ttft:200", "--ablate", refusals=refusals)


def outline(page: str) -> Outline:
    found = Outline()
    found.feed(page)
    found.close()
    assert not found.open
    return found


def test_the_page_is_whole_and_asks_nobody_for_anything() -> None:
    page = render(full_record())
    found = outline(page)
    assert page.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "img", "iframe"} & found.seen
    assert page.count("<svg") == 5
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page)


def test_what_others_wrote_is_escaped_and_the_command_is_there() -> None:
    page = render(full_record())
    assert "no room for &lt;weights&gt; &amp; all" in page
    assert "a &lt;CPU&gt;" in page
    assert "--tensor-parallel-size 4" in page
    assert "t_e = 4" in page


def test_pictures_take_the_page_s_colours() -> None:
    page = render(full_record())
    assert "currentColor" in page
    assert "prefers-color-scheme: dark" in page
    assert "#010203" not in page


@pytest.mark.parametrize(
    "given",
    [
        record([turn(1, load(5.0))]),
        record(throughputs({2: [5.0]})),
        record([turn(1, load(5.0, latencies_ms={}, busy_shares={}, exposed_share=None))]),
        replace(record(throughputs({1: [5.0, 6.0], 4: [7.0, 8.0]})), is_complete=False),
    ],
    ids=["no steps", "one degree", "no latencies", "interrupted"],
)
def test_a_report_is_made_of_whatever_there_is(given: TuneRecord) -> None:
    outline(render(given))


@pytest.mark.parametrize(("device", "is_said"), [("--device=sim:h100", True), ("--device=null", False)])
def test_a_simulated_device_is_said_to_be_one(device: str, is_said: bool) -> None:
    found = record([turn(1, load(5.0))])
    found = replace(found, settings=replace(found.settings, serve_flags=("--device", "cpu", device)))
    assert ("sim:h100 is simulated: what its steps take" in render(found)) == is_said


def test_saved_figures_come_back_and_are_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, saved, page = full_record(), tmp_path / "new" / "r.json", tmp_path / "r.html"
    save(saved, given)
    assert read_saved(saved) == given
    assert main(["tune", "--from", str(saved), "--report", str(page)]) == 0
    assert page.read_text() == render(given)
    assert "t_e = 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"settings": {"model": 5}}', '{"format": 1, "turns": ' + "[" * 10**5]
)
def test_a_file_that_was_not_saved_by_tune_is_one_line(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    assert main(["tune", "--from", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("settings", "degrees"), [0, 1]),
        (("settings", "loads"), ["soon"]),
        (("settings", "loads"), []),
        (("turns", 0, "degree"), 0),
        (("turns", 0, "step", "period_us"), 0),
    ],
)
def test_figures_that_cannot_be_are_refused_by_name(
    place: tuple[str | int, ...], value: object, tmp_path: Path
) -> None:
    content: Any = msgspec.to_builtins(full_record(), str_keys=True)
    *parents, last = place
    functools.reduce(operator.getitem, parents, content)[last] = value
    (tmp_path / "r.json").write_bytes(msgspec.json.encode(content))
    name = next(key for key in reversed(place) if isinstance(key, str))
    with pytest.raises(SettingsError, match=rf"was not saved by `albireo-run tune`: .*\.{name}"):
        read_saved(tmp_path / "r.json")


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "r.json", replace(full_record(), format=99, versions=[]))
    with pytest.raises(SettingsError, match="is of format 99"):
        read_saved(tmp_path / "r.json")


def test_a_missing_matplotlib_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'albireo\[plot\]'"):
        check_report(Path("x.html"))


def test_a_report_is_html() -> None:
    with pytest.raises(SettingsError, match=r"makes \.html files"):
        check_report(Path("x.pdf"))
