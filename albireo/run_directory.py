"""Where an engine's ipc sockets are. A leaf: every process may be the last one, which has to remove it."""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from albireo import config

_PREFIX = "albireo-"
_DEAD = ".albireo-dead-"
"""In front of the name of a directory that is being removed."""
_LOCK = "lock"


class RunDirectory:
    """The private directory of the ipc sockets, removed at the end. Whoever makes one removes those that supervisors
    have left who were killed together with all that would have tidied up."""

    def __enter__(self) -> str:
        parent = Path(config.runtime_parent_dir())
        _remove_orphans(parent)
        self._path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock_fd = _take_lock(self._path)
        return str(self._path)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        remove(self._path)
        os.close(self._lock_fd)


def remove(folder: Path) -> None:
    """Its name goes first: whoever is killed in the middle leaves something that the next start knows for an orphan."""
    dead = folder.with_name(_DEAD + folder.name)
    with suppress(OSError):  # another process was faster
        folder.rename(dead)
        shutil.rmtree(dead, ignore_errors=True)


def _take_lock(folder: Path) -> int:
    """Held as long as this process lives. The file has its name only once it is locked: nobody takes the directory for
    an orphan before."""
    unnamed = folder / f".{_LOCK}"
    fd = os.open(unnamed, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unnamed.rename(folder / _LOCK)
    return fd


def _remove_orphans(parent: Path) -> None:
    """This user's directories whose lock nobody holds, and those that were being removed."""
    for folder in parent.glob(f"{_DEAD}*"):
        with suppress(OSError):
            if folder.lstat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)
    for lock in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError):  # held, another user's, or gone in this moment
            if lock.lstat().st_uid != os.getuid():
                continue
            fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(lock.parent)
            finally:
                os.close(fd)
