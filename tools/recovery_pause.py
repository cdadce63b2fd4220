"""How long a running stream waits when a process is killed: from the kill to the stream's next token.

    python tools/recovery_pause.py --rounds 5
    python tools/recovery_pause.py --rounds 3 --context 500 -- MODEL --dtype bfloat16

Starts a server (the bundled demo model, or what stands behind `--`), keeps one greedy stream running, and kills the
worker, the worker again without a spare one, and the coordinator in turns, each time when the stream has `--context`
tokens of output. Prints the pauses, and what a worker's start takes by the supervisor's account.
"""

import argparse
import itertools
import json
import os
import re
import signal
import statistics
import sys
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "e2e"))
from server import Server, eventually, processes

VICTIMS = ("worker-0", "worker-0 without a spare", "coordinator-0")


class Stream:
    """A stream without end, and when its tokens came."""

    def __init__(self, server: Server, model: str, max_tokens: int) -> None:
        body = {"model": model, "prompt": "x", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
        data, headers = json.dumps(body | {"temperature": 0}).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.url}/v1/completions", data, headers)
        self.times_s: list[float] = []
        self._response = urllib.request.urlopen(request)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._response:
            if line.startswith(b"data: {"):
                if b'"error"' in line:
                    raise SystemExit(line.decode())
                self.times_s.append(time.monotonic())

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def wait_for(self, num_tokens: int) -> bool:
        return eventually(lambda: len(self.times_s) >= num_tokens or self.has_ended, timeout_s=300)

    def pause_s(self, kill_s: float) -> float:
        """The longest wait that ends after the kill."""
        gaps = itertools.pairwise(list(self.times_s))
        return max(after - max(before, kill_s) for before, after in gaps if after > kill_s)


def spare(server: Server) -> int | None:
    """The spare worker's pid, if it is ready: it waits in a read."""
    for pid, parent, name in processes():
        if parent == server.process.pid and name == "albireo-spare":
            state = Path(f"/proc/{pid}/wchan").read_text() if os.access(f"/proc/{pid}/wchan", os.R_OK) else "pipe"
            return pid if "pipe" in state or state == "0" else None
    return None


def one_pause(server: Server, model: str, victim: str, context: int, after: int) -> float:
    """Kills it under a new stream."""
    assert eventually(lambda: spare(server) is not None, timeout_s=120), "no spare worker"
    time.sleep(3)  # its imports
    if "without" in victim:
        os.kill(spare(server) or 0, signal.SIGKILL)
    stream = Stream(server, model, context + after)
    stream.wait_for(context)
    kill_s = time.monotonic()
    os.kill(server.children()[f"albireo-{victim.partition(' ')[0]}"], signal.SIGKILL)
    stream.wait_for(context + after)
    return stream.pause_s(kill_s)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--context", type=int, default=300, help="output tokens before the kill")
    parser.add_argument("--after", type=int, default=600, help="and after it")
    parser.add_argument("serve_flags", nargs="*", metavar="-- SERVE FLAGS")
    args = parser.parse_args()
    pauses: dict[str, list[float]] = {victim: [] for victim in VICTIMS}
    with Server(*args.serve_flags) as server:
        with urllib.request.urlopen(f"{server.url}/v1/models") as response:
            model = json.load(response)["data"][0]["id"]
        for _ in range(args.rounds):
            for victim in VICTIMS:
                pauses[victim].append(one_pause(server, model, victim, args.context, args.after))
                time.sleep(4)  # no more than a few deaths a minute
        starts = re.findall(r"worker-0 .* is ready after ([\d.]+) s", "\n".join(server.lines))
    print(f"pause of a stream with {args.context} tokens, from the kill to its next token (s): p50, all")
    for victim, seconds in pauses.items():
        print(f"  {victim:26} {statistics.median(seconds):6.2f}   {' '.join(f'{each:.2f}' for each in seconds)}")
    print(f"a worker's starts by the supervisor's account (s): {' '.join(starts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
