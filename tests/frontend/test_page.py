"""The web page: what is served, to whom, and with which headers."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fakes import tokens_reply
from frontend_server import FrontendServer

from albireo.frontend.page import FOLDER

OWN_ADDRESS = "http://www.w3.org/2000/svg"
"""The name of a language, which nothing is loaded from."""


@pytest.fixture(scope="module")
def server(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontendServer]:
    with FrontendServer(tmp_path_factory.mktemp("run"), tokenizer_path, tokens_reply([74])) as server:
        yield server


def paths() -> list[str]:
    """Of everything that the page consists of."""
    return ["/" if path.name == "index.html" else f"/page/{path.name}" for path in sorted(FOLDER.iterdir())]


@pytest.mark.parametrize("path", paths())
def test_each_file_is_served_with_headers_that_hold_the_page_to_itself(server: FrontendServer, path: str) -> None:
    answer = httpx.get(server.url + path)
    assert answer.status_code == 200
    assert answer.content == (FOLDER / (path.rpartition("/")[2] or "index.html")).read_bytes()
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "text/html"), ("/page/app.js", "text/javascript"), ("/page/style.css", "text/css")]
)
def test_head_says_what_get_would(server: FrontendServer, path: str, kind: str) -> None:
    head, get = httpx.head(server.url + path), httpx.get(server.url + path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length", "etag", "content-security-policy"):
        assert head.headers[name] == get.headers[name]
    assert get.headers["content-type"].startswith(kind)


def test_a_browser_that_has_a_file_is_told_so(server: FrontendServer) -> None:
    tag = httpx.get(server.url + "/page/app.js").headers["etag"]
    again = httpx.get(server.url + "/page/app.js", headers={"If-None-Match": f'W/"old", {tag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.get(server.url + "/page/app.js", headers={"If-None-Match": '"old"'}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/page/", "/page/../page.py", "/page/%2e%2e/page.py", "/page/index.html", "/page/x.js"]
)
def test_no_other_file_can_be_had(server: FrontendServer, path: str) -> None:
    answer = httpx.get(server.url + path)
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"


def test_the_page_names_nothing_that_lies_elsewhere_and_nothing_inline() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8").replace(OWN_ADDRESS, "")
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text), path
    index = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", index)


def test_all_that_files_refer_to_is_there(server: FrontendServer) -> None:
    index = (FOLDER / "index.html").read_text(encoding="utf-8")
    named = set(re.findall(r'(?:src|href)="page/([^"]+)"', index))
    for path in FOLDER.glob("*.js"):
        named |= set(re.findall(r'from "\./([^"]+)"', path.read_text(encoding="utf-8")))
    assert named == {path.name for path in FOLDER.iterdir()} - {"index.html"}


def test_every_id_that_a_script_asks_for_is_in_the_page() -> None:
    index = (FOLDER / "index.html").read_text(encoding="utf-8")
    asked = {each for path in FOLDER.glob("*.js") for each in re.findall(r'at\("([\w-]+)"\)', path.read_text())}
    assert asked <= set(re.findall(r'\sid="([\w-]+)"', index))
    assert {"log", "prompt", "steps"} <= asked


def test_the_page_needs_no_key_and_all_that_it_asks_for_does(tokenizer_path: Path, run_dir: Path) -> None:
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74]), api_keys=("k",)) as server:
        assert [httpx.get(server.url + path).status_code for path in paths()] == [200] * len(paths())
        for path in ("/engine/events", "/v1/models", "/page/", "/page/x.js", "//"):
            assert httpx.get(server.url + path).status_code == 401
        assert httpx.post(server.url + "/v1/chat/completions", json={}).status_code == 401


def test_without_the_page_its_paths_are_like_any_other(tokenizer_path: Path, run_dir: Path) -> None:
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74]), web_page=False) as server:
        for path in ("/", "/page/app.js"):
            answer = httpx.get(server.url + path)
            assert answer.status_code == 404
            assert answer.json()["error"]["type"] == "not_found_error"


def test_without_the_page_its_paths_need_a_key_like_any_other(tokenizer_path: Path, run_dir: Path) -> None:
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74]), web_page=False, api_keys=("k",)) as server:
        assert httpx.get(server.url + "/").status_code == 401
