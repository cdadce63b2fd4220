"""The web page in a browser, on a real server."""

import os
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from browser import Page, installed, open_browser
from server import Server

from albireo.frontend.engine_snapshot import Snapshots, description
from albireo.shm import flight, segment
from albireo.shm.flight import FlightRecorder, Part
from albireo.shm.layout import ENGINE_STATS
from albireo.trace.overlap import measure
from albireo.trace.steps import find_steps

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ENTER, SHIFT, ESCAPE, TAB = "\ue007", "\ue008", "\ue00c", "\ue004"
LEFT, UP = "\ue012", "\ue013"
"""WebDriver's codes of keys."""
KEY = "a-key-of-this-test"
ANSWER = "document.querySelector('.answer:last-child .body').textContent"
ENDED = "document.querySelector('.answer:last-child:not(.streams) .facts button') !== null"
PICTURE = "document.getElementById('steps').toDataURL()"
RECORDS = "Number(document.getElementById('steps').dataset.records ?? 0)"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    installed()
    with Server("--kv-cache-bytes", "32M", "--disable-uvicorn-access-log") as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Page]:
    page = Page(browser, server.url)
    page.wait("document.getElementById('model').value !== ''")
    page.wait("document.getElementById('link').textContent === 'live'")
    yield page
    assert page.errors() == []


ENDLESS = """(original => (path, options) => original(path, options?.body
    ? {...options, body: JSON.stringify({...JSON.parse(options.body), ignore_eos: true})} : options))(window.fetch)"""
"""A fetch that asks for an answer which ends at its most tokens only."""


def ask_for_long(page: Page) -> None:
    """An answer of seconds."""
    page.run("void (document.getElementById('max-tokens').value = 1500)")
    page.run(f"void (window.fetch = {ENDLESS})")
    page.press("Tell me everything", ENTER)


def test_a_chat_streams_and_says_how_fast_it_was(page: Page) -> None:
    page.press("What does os.path.join do?", ENTER)
    page.wait(f"{ANSWER}.length > 0")
    page.wait(ENDED)
    assert "Join" in page.run(ANSWER)
    facts = page.run("document.querySelector('.answer:last-child .facts').textContent")
    assert "first token after" in facts
    assert "tokens/s" in facts
    page.press("What is a decorator?", ENTER)
    page.wait("document.querySelectorAll('.answer').length === 2")
    page.wait(ENDED)


def test_the_timeline_moves_while_an_answer_streams(page: Page) -> None:
    ask_for_long(page)
    page.wait("document.getElementById('running').textContent !== '0'")
    page.run(f"void (window.before = {{records: {RECORDS}, picture: {PICTURE}}})")
    page.wait(f"{RECORDS} > window.before.records && {PICTURE} !== window.before.picture")
    page.wait("document.querySelectorAll('#host tr').length >= 2")
    page.wait("document.getElementById('verdict').textContent.includes('exposed')")
    page.press(ESCAPE)
    page.wait(ENDED)


def test_escape_stops_an_answer_and_the_engine_drops_it(page: Page, server: Server) -> None:
    aborted = server.metric("albireo:request_success_total", finished_reason="abort")
    ask_for_long(page)
    page.wait(f"{ANSWER}.length > 0")
    page.press(ESCAPE)
    page.wait(ENDED)
    assert "stopped" in page.run("document.querySelector('.answer:last-child .facts').textContent")
    page.wait("document.getElementById('running').textContent === '0'")
    assert server.metric("albireo:request_success_total", finished_reason="abort") == aborted + 1
    assert page.focus == "prompt"


def test_the_keyboard_is_enough(page: Page) -> None:
    assert page.focus == "prompt"
    page.press("one", SHIFT + ENTER, "\ue000two")
    assert page.run("document.getElementById('prompt').value") == "one\ntwo"
    page.press(ENTER)
    page.wait(ENDED)
    assert page.run("document.querySelector('.asked').textContent") == "one\ntwo"
    visited = []
    for _ in range(12):
        page.press(TAB)
        visited.append(page.focus)
        assert page.run("getComputedStyle(document.activeElement).outlineStyle") != "none", f"{visited[-1]}: no outline"
        if visited[-1] == "steps":
            break
    assert [name for name in visited if name] == ["new", "send", "closer", "wider", "pause", "steps"]
    page.press(LEFT)
    page.wait("document.getElementById('part').textContent.includes('µs')")
    first = page.run("document.getElementById('part').textContent")
    page.press(LEFT)
    assert page.run("document.getElementById('part').textContent") != first
    # the stretch that is shown may hold one process's parts only; Escape lets the film go on
    page.keep_pressing((ESCAPE, LEFT, UP), "document.getElementById('part').textContent.includes('coordinator-0')")
    page.press(" ")
    assert page.run("document.getElementById('pause').getAttribute('aria-pressed')") == "true"


def test_each_field_has_a_name_and_the_answer_is_told_to_those_who_do_not_see_it(page: Page) -> None:
    unnamed = page.run(
        "[...document.querySelectorAll('input, select, textarea')].filter(each => !each.labels.length).length"
    )
    assert unnamed == 0
    assert page.run("document.getElementById('log').getAttribute('role')") == "log"
    page.press("What is a list?", ENTER)
    page.wait(ENDED)
    page.wait("document.getElementById('said').textContent === 'Answer complete'")


def test_new_chat_begins_again(page: Page) -> None:
    page.press("What is a list?", ENTER)
    page.wait(ENDED)
    page.run("document.getElementById('new').click()")
    assert page.run("document.querySelectorAll('.answer').length") == 0
    assert page.focus == "prompt"


def test_a_narrow_window_needs_no_sideways_scrolling(page: Page) -> None:
    page.browser.set_window_size(500, 850)
    try:
        page.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        )
        page.press("What does os.path.join do?", ENTER)
        page.wait(ENDED)
        assert page.run("document.documentElement.scrollWidth") <= 360
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.set_window_size(1400, 900)


def test_who_wants_no_motion_gets_still_pictures(page: Page) -> None:
    motion = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", motion)
    try:
        page.press("What is a list?", ENTER)
        page.wait(ENDED)
        page.wait("document.getElementById('pace').textContent.startsWith('a picture every')")
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


OVERLAP = """
const [description, event, done] = arguments;
const load = (name) => import(`${location.origin}/page/${name}.js`);
Promise.all([load("flight"), load("overlap")]).then(([{ Flight }, { Overlap }]) => {
  const flight = new Flight(description);
  const overlap = new Overlap(flight);
  overlap.add(flight.add(event));
  done(overlap.perStep());
});
"""
NUM_STEPS = 100


def test_hidden_and_exposed_time_is_what_trace_says(page: Page) -> None:
    names = ("frontend-0", "coordinator-0", "worker-0")
    fds = [segment.create(name, flight.flight_bytes()) for name in names]
    for fd, name in zip(fds, names, strict=True):
        flight.initialise(fd, name)
    frontend, coordinator, worker = (FlightRecorder(fd, 0, 1, lambda: 0) for fd in fds)
    for step in range(1, NUM_STEPS + 1):
        at_ns = step * 1_000_000
        coordinator.record(Part.EXPOSED, step, at_ns - 100_000, at_ns)
        worker.record(Part.FORWARD, step, at_ns, at_ns + 800_000)
        worker.record(Part.SAMPLE, step, at_ns + 800_000, at_ns + 900_000)
        worker.record(Part.RESULT_WRITE, step, at_ns + 900_000, at_ns + 940_000)
        coordinator.record(Part.CONFIRM, step, at_ns + 850_000, at_ns + 970_000)
        frontend.record(Part.SEND, step, at_ns + 300_000, at_ns + 500_000)
    snapshots = Snapshots([np.zeros(1, ENGINE_STATS)], fds, lambda: NUM_STEPS * 1_000_000 + 2_000_000)
    told = [msgspec.to_builtins(each) for each in (description("m", 0.2, list(names)), snapshots.event())]
    shown = page.browser.execute_async_script(OVERLAP, *told)
    logs = [flight.FlightReader(fd).read() for fd in fds]
    account = measure(logs, find_steps(logs).timed())
    for process in shown:
        parts = [part for part in account.parts if part.process == process["name"]]
        host = [part for part in parts if part.part not in ("FORWARD", "SAMPLE")]
        for kind, field in (("behind", "hidden_us"), ("exposed", "exposed_us")):
            assert process[kind] == pytest.approx(sum(getattr(part, field) for part in host), rel=0.02)
    assert [process["behind"] > 0 for process in shown] == [True, True, False]
    for fd in fds:
        os.close(fd)


def test_a_locked_server_s_page_asks_for_the_key_and_keeps_it_in_the_tab(browser: Any) -> None:
    with Server("--kv-cache-bytes", "16M", "--api-key", KEY) as server:
        page = Page(browser, server.url)
        page.wait("!document.getElementById('key-form').hidden")
        page.wait("document.activeElement.id === 'key'")
        page.press("another", ENTER)
        page.wait("!document.getElementById('key-refused').hidden && document.activeElement.id === 'key'")
        page.press(KEY, ENTER)
        page.wait("document.getElementById('link').textContent === 'live'")
        assert page.run("document.getElementById('key-form').hidden")
        page.wait("document.getElementById('model').value !== ''")
        page.press("What is a list?", ENTER)
        page.wait(ENDED)
        assert KEY not in page.run("JSON.stringify({...localStorage}) + document.cookie + location.href")
        assert all("401" in error for error in page.errors())
