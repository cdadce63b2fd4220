"""Lines on stderr, for a person and for the journal."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SPEAK = """
import logging
from albireo import logs
from albireo.startup_display import StartupDisplay
logs.configure("worker-0", "info")
logging.warning("one\\ntwo")
display = StartupDisplay("demo", interactive=False)
display.progress("worker-0", "loading", 0.5)
display.error("no memory")
"""


def lines(path: Path, journal: str | None, code: str = SPEAK) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
    if journal is not None:
        environment["JOURNAL_STREAM"] = journal
    with path.open("w") as stderr:
        subprocess.run([sys.executable, "-c", code], stderr=stderr, env=environment, check=True)
    return path.read_text().splitlines()


def test_the_journal_gets_priorities_on_every_line_and_no_times(tmp_path: Path) -> None:
    path = tmp_path / "stderr"
    path.touch()
    found = path.stat()
    assert lines(path, f"{found.st_dev}:{found.st_ino}") == [
        "<4>worker-0: one",
        "<4>two",
        "<6>worker-0: loading",
        "<3>albireo: no memory",
    ]


@pytest.mark.parametrize("journal", [None, "", "8:1", "nonsense"])
def test_a_file_gets_times_though_the_journal_s_variable_is_inherited(tmp_path: Path, journal: str | None) -> None:
    first, *rest = lines(tmp_path / "stderr", journal)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} WARNING worker-0: one", first)
    assert rest == ["two", "worker-0: loading", "albireo: no memory"]


SPEAK_JSON = """
import logging
from albireo import logs
from albireo.startup_display import StartupDisplay
logs.configure("worker-0", "info", "json")
logging.debug("nothing")
logging.warning("one\\ntwo", extra=logs.fields(step=3))
try:
    1 / 0
except ZeroDivisionError:
    logging.exception("three")
logs.set_level("error")
logging.warning("nothing")
StartupDisplay("demo", interactive=True, log_format="json").ready("cpu", 7, "http://x")
"""


@pytest.mark.parametrize("on_journal", [False, True])
def test_json_is_an_object_per_event(tmp_path: Path, on_journal: bool) -> None:
    path = tmp_path / "stderr"
    path.touch()
    found = path.stat()
    journal = f"{found.st_dev}:{found.st_ino}" if on_journal else None
    texts = lines(path, journal, SPEAK_JSON)
    prefixes = [text[: text.index("{")] for text in texts]
    assert prefixes == (["<4>", "<3>", "<6>"] if on_journal else [""] * 3)
    one, three, ready = (json.loads(text[text.index("{") :]) for text in texts)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one.pop("time"))
    assert one == {"level": "warning", "process": "worker-0", "message": "one\ntwo", "step": 3}
    assert three["level"] == "error"
    assert "ZeroDivisionError" in three["traceback"]
    assert ready["process"] == "supervisor"
    assert (ready["url"], ready["kv_cache_tokens"]) == ("http://x", 7)
