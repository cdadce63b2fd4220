"""The files that a trace is written to."""

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from flight_logs import make_logs

from albireo.shm.flight import Part
from albireo.trace.gantt import draw_gantt
from albireo.trace.perfetto import write_trace
from albireo.trace.source import TraceError
from albireo.trace.steps import find_steps
from albireo.trace.text_table import aligned, markdown


def events(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    trace = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    found: list[dict[str, Any]] = trace["traceEvents"]
    return found


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_every_record_becomes_a_slice_in_its_process_s_row(tmp_path: Path, name: str) -> None:
    logs = make_logs(5)
    count = write_trace(tmp_path / name, logs)
    slices = [event for event in events(tmp_path / name) if event["ph"] == "X"]
    assert len(slices) == count == sum(log.records.size for log in logs)
    forward = next(event for event in slices if event["name"] == "FORWARD" and event["args"]["step"] == 2)
    assert (forward["ts"], forward["dur"], forward["cat"], forward["args"]["num_rows"]) == (20.0, 7.0, "device", 4)


def test_processes_are_named_and_rows_of_slices_only_nest(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", make_logs(5))
    found = events(tmp_path / "t.json")
    names = {event["args"]["name"]: event["pid"] for event in found if event["name"] == "process_name"}
    assert set(names) == {"frontend-0", "coordinator-0", "worker-0"}
    rows: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in found:
        if event["ph"] == "X":
            rows.setdefault((event["pid"], event["tid"]), []).append(event)
    for row in rows.values():
        row.sort(key=lambda event: event["ts"])
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-9 for a, b in itertools.pairwise(row))


def test_arrows_lead_from_a_plan_to_the_device_to_the_message(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", make_logs(5))
    arrows = [event for event in events(tmp_path / "t.json") if event["ph"] in "stf" and event["id"] == 3]
    assert [event["ph"] for event in arrows] == ["s", "t", "t", "f"]
    assert [event["ts"] for event in arrows] == [21.0, 30.0, 39.5, 41.3]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_is_made(tmp_path: Path, suffix: str) -> None:
    logs = make_logs(9)
    path = tmp_path / f"gantt{suffix}"
    draw_gantt(path, logs, find_steps(logs).timed(), "nine steps")
    head = path.read_bytes()[:200]
    assert head.startswith(b"\x89PNG") if suffix == ".png" else b"<?xml" in head


def test_a_picture_says_which_steps_and_how_much_was_exposed(tmp_path: Path) -> None:
    logs = make_logs(9)
    draw_gantt(tmp_path / "gantt.svg", logs, find_steps(logs).timed(), "nine steps")
    text = (tmp_path / "gantt.svg").read_text()
    for words in ("nine steps", "steps 2 to 9, 4 tokens each", "10.0% exposed", "the device waits", "worker-0"):
        assert f"<!-- {words}" in text or words in text, words


def test_one_step_with_nothing_known_before_it_can_be_drawn(tmp_path: Path) -> None:
    logs = make_logs(1)
    draw_gantt(tmp_path / "gantt.svg", logs, find_steps(logs), "one step")
    assert "enlarged" not in (tmp_path / "gantt.svg").read_text()


def test_another_kind_of_picture_is_refused(tmp_path: Path) -> None:
    logs = make_logs(3)
    with pytest.raises(TraceError, match=r"makes \.png and \.svg files, not gantt\.gif"):
        draw_gantt(tmp_path / "gantt.gif", logs, find_steps(logs), "x")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    logs = make_logs(3)
    with pytest.raises(TraceError, match=r"pip install albireo\[plot\]"):
        draw_gantt(tmp_path / "gantt.png", logs, find_steps(logs), "x")


def test_every_part_that_is_work_has_a_colour() -> None:
    from albireo.trace.gantt_panel import COLOURS

    assert set(COLOURS) == set(Part) - {Part.EXPOSED, Part.IDLE}


def test_tables_line_up_and_are_markdown() -> None:
    header, rows = ("part", "us"), [("a", "1.0"), ("long", "20.5")]
    assert aligned(header, rows) == "part    us\na      1.0\nlong  20.5"
    assert markdown(header, rows) == "| part | us |\n| --- | --: |\n| a | 1.0 |\n| long | 20.5 |"
