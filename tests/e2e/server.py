"""A real server of four processes, for tests and checks."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

START_TIMEOUT_S = 180
"""A first start compiles kernels."""


class Server:
    """`albireo-run serve` with these arguments on a free port, until the end of the with block."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self._arguments = arguments
        self._env = {**os.environ, **(env or {})}
        self.lines: list[str] = []
        self.url = ""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "albireo.cli", "serve", "--port", "0", *self._arguments],
            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=self._env,
        )  # fmt: skip
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._ready.wait(START_TIMEOUT_S)
        except BaseException:  # the test's own time is up
            self.process.kill()
            raise
        if not self.url:
            self.process.kill()
            raise AssertionError("the server did not become ready:\n" + "\n".join(self.lines))
        return self

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            match = re.search(r"albireo ready: (http\S+)", line)
            if match:
                self.url = match[1]
                self._ready.set()
        self._ready.set()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.stderr is not None
        if not self.process.stderr.closed:
            self.wait()

    def wait(self, timeout_s: float = 60) -> int:
        """The exit code; everything it wrote is in `lines`."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("the server did not stop:\n" + "\n".join(self.lines)) from None
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def children(self) -> dict[str, int]:
        """Pids of its processes by name, e.g. `albireo-worker-0`, without those that wait for one to die."""
        own = {name: pid for pid, parent, name in processes() if parent == self.process.pid}
        return {name: pid for name, pid in own.items() if name.startswith("albireo-") and name != "albireo-spare"}

    def metric(self, name: str, **labels: str) -> float:
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            for line in response.read().decode().splitlines():
                has_labels = all(f'{key}="{value}"' in line for key, value in labels.items())
                if has_labels and re.match(rf"{re.escape(name)}(\{{.*\}})? ", line):
                    return float(line.split()[-1])
        raise AssertionError(f"no metric {name}")

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            answer: dict[str, Any] = json.load(response)
            return answer


def processes() -> list[tuple[int, int, str]]:
    """(pid, parent, command line's first word) of every live process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                name = (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z":
                found.append((int(entry.name), int(fields[1]), name))
    return found


def eventually(condition: Any, timeout_s: float = 60) -> bool:
    """True as soon as `condition()` is; False after the timeout."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())
