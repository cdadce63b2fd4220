"""An engine of our own, started as `albireo-run serve` for a benchmark or a chat and stopped behind it."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import IO

from albireo.engine_file import EngineInfo, find_engines

START_TIMEOUT_S = 900.0
"""A first start compiles kernels, and a large checkpoint takes its time."""
STOP_TIMEOUT_S = 30.0
_LOOK_INTERVAL_S = 0.1


_CLEAR_LINE = "\r\33[2K"
_MAX_OUTPUT_BYTES = 64 * 1024
"""Of what the server wrote, as much of its end is looked at."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class EngineProcessError(Exception):
    """The server did not start; the text is one line."""


class EngineProcess:
    """`with EngineProcess(arguments) as engine:` is a server on a free port, ready for requests."""

    def __init__(self, arguments: Sequence[str], shows_start: bool = False) -> None:
        """`shows_start`: on a terminal, a line on stderr says how far the start is, and goes when it is done."""
        self._command = [sys.executable, "-m", "albireo.cli", "serve", "--port", "0", *arguments]
        self._shows_start = shows_start

    def __enter__(self) -> EngineInfo:
        """Raises EngineProcessError with the server's last words."""
        with tempfile.TemporaryFile() as output, self._display() as show:
            # in a session of its own: a Ctrl-C in this terminal is for us
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stderr=output,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509  commands start servers before they start threads
            )
            try:
                return self._wait(lambda: show(_last_line(output)))
            except EngineProcessError as error:
                self._stop()
                raise EngineProcessError(f"{error}: {_last_line(output) or 'it said nothing'}") from None
            except BaseException:
                self._stop()
                raise

    def check(self) -> None:
        """Raises EngineProcessError where the server has ended since it was ready."""
        if self._process.poll() is not None:
            raise EngineProcessError(
                f"the server ended with exit code {self._process.returncode} while it was measured"
            )

    def _wait(self, look: Callable[[], None]) -> EngineInfo:
        """The engine's file is written when all its processes are ready."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise EngineProcessError(f"the server ended with exit code {self._process.returncode}")
            for engine in find_engines():
                if engine.pid == self._process.pid:
                    return engine
            look()
            time.sleep(_LOOK_INTERVAL_S)
        raise EngineProcessError(f"the server was not ready after {START_TIMEOUT_S:g} s")

    @contextmanager
    def _display(self) -> Iterator[Callable[[str], None]]:
        """Gives a function that shows a line in place of the one before."""
        if not (self._shows_start and sys.stderr.isatty()):
            yield lambda line: None
            return
        # not rich's status, which has a thread: the server is forked from here
        started = time.monotonic()

        def show(line: str) -> None:
            text = f"starting a server, {time.monotonic() - started:.0f} s: {line}"
            width = shutil.get_terminal_size().columns
            print(f"{_CLEAR_LINE}{text[: width - 1]}", end="", file=sys.stderr, flush=True)

        try:
            yield show
        finally:
            print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)

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


def _last_line(output: IO[bytes]) -> str:
    """What the server said last; the child's own position in the file stays where it is."""
    end = os.fstat(output.fileno()).st_size
    content = os.pread(output.fileno(), _MAX_OUTPUT_BYTES, max(0, end - _MAX_OUTPUT_BYTES))
    lines = content.decode(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "")
