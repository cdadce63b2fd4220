"""A Ray cluster of several nodes on this machine, for `ray_check.py`: its processes, and Albireo's engines among them.

All that is started from here on has a variable of its own in its environment, by which it is found again in /proc.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from albireo.cluster.upstream import UpstreamGoneError, get

MARK = "ALBIREO_RAY_CHECK"
START_TIMEOUT_S = 400.0
"""A first start compiles kernels."""


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    command: str


@dataclass(frozen=True)
class EngineOf:
    """An engine and the actor that has started it."""

    actor: int
    supervisor: int
    socket_path: str
    raylet: int
    """Of their node."""
    is_on_head: bool


def started_here() -> list[Process]:
    """What lives of all that was started with the mark, without this process."""
    mark, found = f"{MARK}={os.environ.get(MARK)}".encode(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if fields[0] != "Z":
            found.append(Process(int(entry.name), int(fields[1]), command.strip()))
    return found


def engines() -> list[EngineOf]:
    """Those whose actor lives."""
    processes = {process.pid: process for process in started_here()}
    found = []
    for process in processes.values():
        actor = processes.get(process.parent)
        path = re.search(r"albireo\.cluster\.engine_child .*--uds (\S+)", process.command)
        if path and actor and "ServeReplica:albireo" in actor.command:
            raylet = processes.get(actor.parent)
            is_on_head = raylet is not None and "__internal_head__" in raylet.command
            found.append(EngineOf(actor.pid, process.pid, path[1], actor.parent, is_on_head))
    return found


async def metric(engine: EngineOf, name: str, key: str, labels: str = "") -> float | None:
    """Sum of a metric's samples, of those with these labels; None where the engine does not answer."""
    try:
        text = await _get_with_key(engine.socket_path, "/metrics", key)
    except UpstreamGoneError:
        return None
    lines = (line for line in text.splitlines() if re.match(rf"{re.escape(name)}(\{{.*\}})? ", line) and labels in line)
    return sum(float(line.split()[-1]) for line in lines)


async def _get_with_key(path: str, target: str, key: str) -> str:
    status, body = await get(path, target, 5.0, [(b"authorization", f"Bearer {key}".encode())])
    if status != 200:
        raise UpstreamGoneError(f"status {status}")
    return body.decode()


def eventually(condition: Callable[[], object], timeout_s: float) -> float | None:
    """Seconds until it is so, or None."""
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < timeout_s:
        if condition():
            return time.monotonic() - begin_s
        time.sleep(0.1)
    return None


@dataclass(frozen=True)
class LocalCluster:
    address: str
    add_node: Callable[[], object]


@contextmanager
def local_cluster(worker_port: int) -> Iterator[LocalCluster]:
    """Two nodes, with a CPU each, as Ray counts, so that each has one replica; the proxies of all but the first listen
    on `worker_port`."""
    os.environ[MARK] = uuid.uuid4().hex
    os.environ["RAY_SERVE_WORKER_PROXY_HTTP_PORT"] = str(worker_port)
    from ray.cluster_utils import Cluster

    arguments = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**arguments, "include_dashboard": False})
    try:
        cluster.add_node(**arguments)
        yield LocalCluster(cluster.address, lambda: cluster.add_node(**arguments))
    finally:
        cluster.shutdown()


@dataclass
class Command:
    """`albireo-run serve --ray` or `serve run`, until the end of the with block."""

    argv: list[str]
    environment: dict[str, str]
    shows: bool
    lines: list[str] = field(default_factory=list)

    def __enter__(self) -> "Command":
        self.process = subprocess.Popen(
            self.argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            env={**os.environ, **self.environment}, process_group=0,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if self.shows:
                print(f"    {line.rstrip()}", file=sys.stderr)

    def wait_for(self, words: str) -> float:
        """Seconds until a line has these words. Raises SystemExit with what was said instead."""
        seconds = eventually(
            lambda: any(words in line for line in self.lines) or self.process.poll() is not None, START_TIMEOUT_S
        )
        if seconds is None or not any(words in line for line in self.lines):
            raise SystemExit("\n".join([*self.lines[-30:], f"{self.argv}: no {words!r}"]))
        return seconds

    def stop(self, timeout_s: float, number: int = signal.SIGTERM) -> int | None:
        """The exit code after a signal; None if it does not end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


def fetch(url: str) -> str:
    """What a browser or a balancer's probe would see."""
    with urllib.request.urlopen(url, timeout=10) as response:
        text: str = response.read().decode()
        return text


def is_served(url: str) -> bool:
    try:
        return bool(fetch(url))
    except OSError:
        return False
