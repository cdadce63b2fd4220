"""Kills everything of a server with SIGKILL, again and again, and looks for what is left.

    python tools/kill_rounds.py --rounds 100

Each round starts a server on the bundled demo model, at times with streams under way and at times before it is ready,
and kills its processes in random order, the supervisor among them. Then no process may live, nothing may be in
/dev/shm, and the next start must serve on the same port. What the killed ones left in the runtime directory the next
start removes. Prints how long starts took and what was left at the end. Exit code 1 if anything was.
"""

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "e2e"))
from server import eventually, processes


def family(pid: int) -> list[int]:
    """The process and its children."""
    return [pid, *(child for child, parent, _ in processes() if parent == pid)]


def stream(url: str) -> None:
    body = {"model": "albireo-demo", "prompt": "x", "max_tokens": 1000, "stream": True, "ignore_eos": True}
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", data, headers)
    with suppress(OSError, HTTPException), urllib.request.urlopen(request) as response:
        response.read()


class Rounds:
    """One port, one runtime directory, many servers."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.run_dir = Path(tempfile.mkdtemp(prefix="kill-rounds-"))
        self.starts_s: list[float] = []
        self.problems: list[str] = []

    def start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "albireo.cli", "serve", "--port", str(self._port), "--kv-cache-bytes", "64M"]
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(self.run_dir)}
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    def wait_ready(self, process: "subprocess.Popen[str]") -> None:
        begin_s = time.monotonic()
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "albireo ready" in line:
                self.starts_s.append(time.monotonic() - begin_s)
                return
        self.problems.append("a start failed: " + "".join(lines)[-300:])

    def run(self, is_early: bool, has_streams: bool) -> None:
        """Starts, kills, looks."""
        process = self.start()
        if is_early:
            time.sleep(self._random.uniform(0.1, 2.0))
        else:
            self.wait_ready(process)
            url = f"http://127.0.0.1:{self._port}"
            for _ in range(4 * has_streams):
                threading.Thread(target=stream, args=(url,), daemon=True).start()
            time.sleep(self._random.uniform(0.0, 0.5))
        victims = family(process.pid)
        self._random.shuffle(victims)
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
        if not eventually(lambda: not {pid for pid, _, _ in processes()} & set(victims), timeout_s=5):
            self.problems.append("a process lives on")

    def look(self, shm: set[str]) -> None:
        """What nobody removes later."""
        left = {name for name in os.listdir("/dev/shm") if "albireo" in name} - shm  # noqa: PTH208
        if left:
            self.problems.append(f"in /dev/shm: {left}")
        if len(orphans := list(self.run_dir.iterdir())) > 1:
            self.problems.append(f"{len(orphans)} runtime directories")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rounds = Rounds(args.seed)
    shm = set(os.listdir("/dev/shm"))  # noqa: PTH208
    for number in range(args.rounds):
        rounds.run(is_early=number % 4 == 3, has_streams=number % 4 == 1)
        rounds.look(shm)
    process = rounds.start()
    rounds.wait_ready(process)
    with urllib.request.urlopen(f"http://127.0.0.1:{rounds._port}/health") as response:
        is_well = response.status == 200
    process.send_signal(signal.SIGTERM)
    code = process.wait(30)
    left = list(rounds.run_dir.iterdir())
    print(f"rounds     {args.rounds}: a quarter each idle, with streams, idle, before it was ready")
    starts_s = rounds.starts_s
    print(f"starts     {len(starts_s)}: p50 {statistics.median(starts_s):.1f} s, max {max(starts_s):.1f} s")
    print(f"problems   {len(rounds.problems)} {rounds.problems[:3]}")
    print(f"after it   a start that serves: {is_well}, exit code {code}, left in the runtime directory: {left}")
    return 0 if is_well and not code and not left and not rounds.problems else 1


if __name__ == "__main__":
    sys.exit(main())
