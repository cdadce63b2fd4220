"""The directory of the sockets: gone at the end; what killed servers left goes with the next start."""

import subprocess
import sys
from pathlib import Path

import pytest

from albireo.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    return tmp_path


def test_it_is_removed_at_the_end(parent: Path) -> None:
    with RunDirectory() as path:
        Path(path, "control.sock").touch()
        assert [str(each) for each in parent.iterdir()] == [path]
    assert not list(parent.iterdir())


def test_what_a_killed_server_left_is_removed_by_the_next_and_what_lives_is_not(parent: Path) -> None:
    code = (
        "import sys, time; from albireo.run_directory import RunDirectory\n"
        "with RunDirectory() as path: print(path, flush=True); time.sleep(60)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = [process.stdout.readline().strip() for process in processes if process.stdout]
    processes[0].kill()
    processes[0].wait()
    with RunDirectory() as path:
        assert {str(each) for each in parent.iterdir()} == {path, paths[1]}
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_one_that_was_being_removed_goes_with_the_next_start(parent: Path) -> None:
    (parent / ".albireo-dead-albireo-xyz").mkdir()
    (parent / ".albireo-dead-albireo-xyz" / "control.sock").touch()
    with RunDirectory() as path:
        assert [str(each) for each in parent.iterdir()] == [path]


def test_other_directories_are_left_alone(parent: Path) -> None:
    (parent / "albireo-notes").mkdir()
    (parent / "other").mkdir()
    (parent / "other" / "lock").touch()
    with RunDirectory():
        pass
    assert {each.name for each in parent.iterdir()} == {"albireo-notes", "other"}
