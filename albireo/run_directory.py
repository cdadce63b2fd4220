"""Where an engine's ipc sockets are."""

import shutil
import tempfile
from types import TracebackType

from albireo import config


class RunDirectory:
    """The private directory of the ipc sockets, removed at the end."""

    def __enter__(self) -> str:
        self._path = tempfile.mkdtemp(prefix="albireo-", dir=config.runtime_parent_dir())
        return self._path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
