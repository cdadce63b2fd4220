"""Folder = process, imports go one way: read from the sources, held for every file."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "albireo"
PROCESSES = {"frontend", "coordinator", "grammar", "gpu_worker"}
LEAVES = {
    "messages",
    "config",
    "errors",
    "limits",
    "checkpoint",
    "shm",
    "sim",
    "sockets",
    "child",
    "child_main",
    "logs",
    "run_directory",
}
BANNED = {"pickle", "marshal", "dill", "cloudpickle", "shelve"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path: Path) -> str:
    """The part of the package that a file belongs to: `frontend`, `messages`, ..."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def parts_imported(path: Path) -> set[str]:
    names = [name.split(".") for name in imports(path)]
    return {name[1] for name in names if name[0] == "albireo" and len(name) > 1}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    mine, theirs = part(path), parts_imported(path)
    if mine in LEAVES:
        known = {entry.stem for entry in PACKAGE.iterdir()}
        assert not (theirs & known) - LEAVES, "a leaf imports more than leaves"
    elif mine in PROCESSES:
        allowed = LEAVES | {mine, "__version__"}
        assert not (theirs & PROCESSES) - {mine}, "a process imports another process"
        assert not theirs - allowed, "a process imports more than leaves"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_and_dangerous_packages_stay_where_they_belong(path: Path) -> None:
    packages = {name.split(".")[0] for name in imports(path)}
    assert not packages & BANNED, "nothing may unpickle, anywhere"
    if part(path) != "gpu_worker":
        assert not packages & {"torch", "numba", "safetensors"}
    if part(path) != "frontend":
        assert not packages & {"starlette", "uvicorn"}
    if part(path) != "grammar":
        assert "llguidance" not in packages
    if part(path) != "cluster":
        assert "ray" not in packages
    assert "torch.load" not in path.read_text()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("albireo.cli", {"torch", "starlette", "numpy", "zmq", "msgspec", "rich", "tokenizers"}),
        ("albireo.serve", {"torch", "starlette", "numba", "tokenizers", "rich"}),
        ("albireo.coordinator.__main__", {"torch", "starlette", "numba", "tokenizers"}),
        ("albireo.frontend.__main__", {"torch", "numba", "transformers", "llguidance"}),
        ("albireo.grammar.__main__", {"torch", "starlette", "numba", "tokenizers"}),
        ("albireo.gpu_worker.__main__", {"starlette", "uvicorn", "tokenizers", "transformers"}),
    ],
)
def test_a_process_does_not_load_what_it_does_not_need(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not absent & set(loaded)


def test_help_imports_no_command_s_code() -> None:
    code = "import sys; from albireo.cli import build_parser; build_parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "starlette", "numpy", "zmq", "msgspec", "uvloop"} & set(loaded)
