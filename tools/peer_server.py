"""A server under comparison: started, waited for, frozen while others are measured, stopped.

Only processes that were started here, and their descendants, are ever signalled.
"""

import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

_POLL_S = 0.1
_STOP_S = 30.0
_CHILDREN_FIRST_S = 0.3
"""A thawed parent that watches its children's heartbeats must find that they have beaten again."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ServerError(Exception):
    """The server did not start; the text says why."""


class PeerServer:
    """One server: either launched here (`command` has {model} and {port}), or running already at `url`."""

    def __init__(self, name: str, command: str | None, url: str | None, model: str) -> None:
        self.name = name
        self.template = command
        self.start_s: float | None = None
        """From the command to a healthy answer; None when it ran before."""
        self._process: subprocess.Popen[bytes] | None = None
        self._log_path = Path(os.devnull)
        port = _free_port() if command else 0
        self.url = (url or f"http://127.0.0.1:{port}").rstrip("/")
        self._argv = [
            part.replace("{model}", model).replace("{port}", str(port)) for part in shlex.split(command or "")
        ]

    def start(self, log_dir: Path, health_path: str, timeout_s: float) -> None:
        """Returns once `health_path` answers 200. Raises ServerError."""
        before = time.monotonic()
        if self._argv:
            self._log_path = log_dir / f"{self.name}.log"
            try:
                with self._log_path.open("wb") as log:
                    self._process = subprocess.Popen(
                        self._argv, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                    )
            except OSError as error:
                raise ServerError(f"{self.name}: {error}") from None
        while not _answers(self.url + health_path):
            if self._process is not None and self._process.poll() is not None:
                raise ServerError(
                    f"{self.name} exited with {self._process.returncode}; its last lines:\n{self._tail()}"
                )
            if time.monotonic() - before > timeout_s:
                raise ServerError(f"{self.name} is not healthy at {self.url} after {timeout_s:g} s")
            time.sleep(_POLL_S)
        if self._process is not None:
            self.start_s = time.monotonic() - before

    def freeze(self) -> None:
        """Stops its processes in their tracks, parents first, so that an idle peer's polling takes nobody's core."""
        for pid in self._tree():
            _signal(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets them run again, the children before the parent that watches them."""
        tree = self._tree()
        for pid in reversed(tree[1:]):
            _signal(pid, signal.SIGCONT)
        if tree:
            time.sleep(_CHILDREN_FIRST_S if len(tree) > 1 else 0)
            _signal(tree[0], signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM to the launched process, then SIGKILL to what is left of its tree."""
        if self._process is None:
            return
        self.thaw()
        born = {pid: _born(pid) for pid in self._tree()}
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        for pid, ticks in born.items():
            if ticks and _born(pid) == ticks:  # and not a stranger that was given the same number since
                _signal(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def memory_gib(self) -> float | None:
        """Of the whole tree, shared pages counted once (PSS); None for a server that was not launched here."""
        tree = self._tree()
        return sum(_rollup_kib(pid, "Pss") for pid in tree) / 2**20 if tree else None

    def resident_gib(self) -> float | None:
        """Of the whole tree, shared pages counted in every process (RSS); None as for `memory_gib`."""
        tree = self._tree()
        return sum(_rollup_kib(pid, "Rss") for pid in tree) / 2**20 if tree else None

    def cpu_s(self) -> float | None:
        """User and system time of the tree so far; None for a server that was not launched here."""
        tree = self._tree()
        return sum(_cpu_ticks(pid) for pid in tree) / _TICKS_PER_S if tree else None

    def _tree(self) -> list[int]:
        """The launched process and its descendants, parents before children."""
        if self._process is None:
            return []
        children: dict[int, list[int]] = {}
        for path in Path("/proc").iterdir():
            if path.name.isdigit() and (fields := _stat_fields(int(path.name))):
                children.setdefault(int(fields[1]), []).append(int(path.name))
        tree = [self._process.pid]
        for pid in tree:
            tree += children.get(pid, [])
        return tree

    def _tail(self) -> str:
        return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-8:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status) == 200
    except (OSError, urllib.error.URLError):
        return False


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _stat_fields(pid: int) -> list[str]:
    """Of /proc/PID/stat, those after the name (which may hold spaces): state, parent, ...; [] when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _born(pid: int) -> str:
    """Its start time, which with its number identifies a process; empty when it is gone."""
    fields = _stat_fields(pid)
    return fields[19] if fields else ""


def _cpu_ticks(pid: int) -> int:
    fields = _stat_fields(pid)
    return int(fields[11]) + int(fields[12]) if fields else 0


def _rollup_kib(pid: int, field: str) -> int:
    """`field` of /proc/PID/smaps_rollup, 0 when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)
