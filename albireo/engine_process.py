"""An engine of our own, started as `albireo-run serve` for a benchmark or a chat and stopped behind it."""

import ctypes
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType

from albireo.engine_file import EngineInfo, find_engines

START_TIMEOUT_S = 900.0
"""A first start compiles kernels, and a large checkpoint takes its time."""
STOP_TIMEOUT_S = 30.0
_LOOK_INTERVAL_S = 0.1


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class EngineProcessError(Exception):
    """The server did not start; the text is one line."""


class EngineProcess:
    """`with EngineProcess(arguments) as engine:` is a server on a free port, ready for requests."""

    def __init__(self, arguments: Sequence[str], shows_start: bool = False) -> None:
        """`shows_start`: what the server writes goes to this process's stderr, its progress above all."""
        self._command = [sys.executable, "-m", "albireo.cli", "serve", "--port", "0", *arguments]
        self._shows_start = shows_start

    def __enter__(self) -> EngineInfo:
        """Raises EngineProcessError with the server's last words."""
        with tempfile.TemporaryFile() as output:
            # in a session of its own: a Ctrl-C in this terminal is for us
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stderr=None if self._shows_start else output,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509  commands start servers before they start threads
            )
            try:
                return self._wait()
            except BaseException as error:
                self._stop()
                output.seek(0)
                lines = output.read().decode(errors="replace").split("\n")
                if isinstance(error, EngineProcessError) and not self._shows_start:
                    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
                    raise EngineProcessError(f"{error}: {last}") from None
                raise

    def _wait(self) -> EngineInfo:
        """The engine's file is written when all its processes are ready."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise EngineProcessError(f"the server ended with exit code {self._process.returncode}")
            for engine in find_engines():
                if engine.pid == self._process.pid:
                    return engine
            time.sleep(_LOOK_INTERVAL_S)
        raise EngineProcessError(f"the server was not ready after {START_TIMEOUT_S:g} s")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _end_with_parent() -> None:
    """Run by the child before it becomes a server: no server outlives the command that it was started for, however
    that one ends (prctl(2))."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
