"""`albireo-run serve` as a child: its lines with the time at which each came, whether it answers, how it ends."""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gpu_sections.jobs import REPO, environment, last_lines

STOP_TIMEOUT_S = 20.0
_READY = re.compile(r"albireo ready: (http://\S+)")


class ServerError(Exception):
    """The server is not there; the text is what it said last."""


class Server:
    """`with Server(flags, log, timeout_s) as server:` is ready, on a free port."""

    def __init__(self, flags: Sequence[str], log: Path, timeout_s: float) -> None:
        self._command = [sys.executable, "-m", "albireo.cli", "serve", "--port", "0", *flags]
        self._log, self._timeout_s = log, timeout_s
        self._ready = threading.Event()
        self.lines: list[tuple[float, str]] = []
        """Seconds since the command, and what was said."""
        self.url = ""

    def __enter__(self) -> Self:
        """Raises ServerError."""
        self._begin = time.monotonic()
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            cwd=REPO, env=environment(),
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._ready.wait(self._timeout_s)
        if not self.url:
            waited = f"not ready after {self.elapsed_s():.0f} s"
            ended = self.process.poll()
            self._stop()
            raise ServerError(
                "\n".join([waited if ended is None else f"the server ended with exit code {ended}", *self.tail()])
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def elapsed_s(self) -> float:
        """Since the command."""
        return time.monotonic() - self._begin

    def answers(self) -> bool:
        """Its health check is good."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return int(response.status) == 200
        except (OSError, urllib.error.URLError):
            return False

    def tail(self) -> tuple[str, ...]:
        return last_lines([line for _, line in self.lines])

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self._log.open("a") as log:
            print(f"\n$ {' '.join(self._command)}", file=log, flush=True)
            for raw in self.process.stderr:
                line = raw.decode(errors="replace").rstrip()
                self.lines.append((self.elapsed_s(), line))
                print(f"[{self.elapsed_s():7.2f}] {line}", file=log, flush=True)
                if match := _READY.search(line):
                    self.url = match[1]
                    self._ready.set()
        self._ready.set()

    def _stop(self) -> None:
        """The supervisor stops its processes, and they stop by themselves where it is gone. The GPU is free then."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(2.0)


def post(url: str, body: dict[str, Any], timeout_s: float = 120.0) -> dict[str, Any]:
    """One completion, not streamed. Raises OSError; the text of an HTTP error is the server's."""
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        raise OSError(f"HTTP {error.code}: {error.read()[:300].decode(errors='replace')}") from None


def model_name(url: str) -> str:
    """The name under which the server's model is asked for."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as response:
        return str(json.load(response)["data"][0]["id"])
