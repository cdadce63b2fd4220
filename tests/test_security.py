"""docs/security.md names, for each rule, the tests that hold it; those that belong nowhere else are here."""

import ast
import re
import stat
from importlib.metadata import version
from pathlib import Path

import pytest

from albireo.run_directory import RunDirectory

ROOT = Path(__file__).parent.parent
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "security.md").read_text())))


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_what_the_document_names_is_there(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert name in functions if name else any(function.startswith("test_") for function in functions)


def test_every_part_of_the_code_that_it_names_is_there() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    assert all((ROOT / path).exists() for path in re.findall(r"`(albireo/[\w/.]+)`", text))


def test_the_directory_of_the_sockets_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    with RunDirectory() as path:
        assert Path(path).parent == tmp_path
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o700


def test_a_frontend_fetches_nothing_and_serves_no_files() -> None:
    for path in (ROOT / "albireo" / "frontend").rglob("*.py"):
        text = path.read_text()
        imported = {line.split()[1].split(".")[0] for line in text.splitlines() if re.match(r"(import|from) ", line)}
        assert not imported & {"urllib", "http", "httpx", "requests", "aiohttp", "urllib3"}, path
        assert not re.search(r"FileResponse|StaticFiles|\.form\(|multipart", text.replace("multipart/", "")), path


def test_starlette_is_new_enough() -> None:
    assert tuple(int(part) for part in version("starlette").split(".")[:3]) >= (1, 3, 1)
