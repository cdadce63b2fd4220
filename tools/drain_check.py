"""A server is asked to stop in the middle of a load: what becomes of the streams, and of who comes late.

    python tools/drain_check.py --streams 64 --shutdown-timeout 20 -- MODEL --kv-cache-bytes 1G

Streams run in all three APIs, their lengths spread over a factor of ten. SIGTERM comes when a quarter of them have
ended; from then on late clients ask again and again. Arguments behind -- go to `albireo-run serve`. Exit code 1
when a stream was truncated, somebody was answered with anything but 200 and 503, or the server did not end well.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from albireo.bench.machine import describe_machine

TEXT = "Write a long story about a lighthouse keeper."
ENDS = {
    "chat": ("data: [DONE]",),
    "messages": ("event: message_stop",),
    "responses": ("event: response.completed", "event: response.incomplete"),
}
"""The last word of a stream that has finished, by API."""
ERRORS = {"chat": 'data: {"error"', "messages": "event: error", "responses": "event: response.failed"}
"""The event of one that could not."""
APIS = tuple(ENDS)
LATE_CLIENTS = 8


@dataclass
class Load:
    """What happened to each client. Written by many threads."""

    host: str
    port: int
    outcomes: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def stream(self, index: int, max_tokens: int) -> None:
        """Runs one stream to its end, and notes which end that was."""
        api = APIS[index % len(APIS)]
        try:
            response = post(HTTPConnection(self.host, self.port, timeout=300), *request(api, max_tokens, streams=True))
            outcome = f"status {response.status}" if response.status != 200 else self._read(api, response)
        except (HTTPException, OSError) as error:
            outcome = f"truncated: {type(error).__name__}"
        with self.lock:
            self.outcomes[outcome] += 1

    def _read(self, api: str, response: HTTPResponse) -> str:
        outcome = "truncated: no last event"
        while line := response.readline().decode():
            if line.startswith(ENDS[api]):
                outcome = "finished"
            elif line.startswith(ERRORS[api]):
                outcome = "ended with an error event"
        return outcome

    def ask_late(self) -> None:
        """A client that comes during the drain, on one connection as long as that is kept."""
        connection = HTTPConnection(self.host, self.port, timeout=60)
        while True:
            try:
                response = post(connection, *request("chat", 5, streams=False))
                response.read()
                is_whole = response.headers["Retry-After"] and response.headers["Connection"] == "close"
                outcome = str(response.status) + ("" if is_whole or response.status != 503 else " without Retry-After")
            except ConnectionRefusedError:
                return
            except (HTTPException, OSError):  # between the last answer and the end
                outcome = "connection closed"
                connection.close()
            with self.lock:
                self.late[outcome] += 1
            time.sleep(0.05)


def request(api: str, max_tokens: int, streams: bool) -> tuple[str, dict[str, Any]]:
    """Path and body."""
    messages = [{"role": "user", "content": TEXT}]
    body: dict[str, Any] = {"model": "albireo-demo", "stream": streams}
    match api:
        case "chat":
            return "/v1/chat/completions", body | {"messages": messages, "max_tokens": max_tokens, "ignore_eos": True}
        case "messages":
            return "/v1/messages", body | {"messages": messages, "max_tokens": max_tokens}
        case _:
            return "/v1/responses", body | {"input": TEXT, "max_output_tokens": max_tokens}


def post(connection: HTTPConnection, path: str, body: dict[str, Any]) -> HTTPResponse:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()


@contextmanager
def serving(arguments: list[str]) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The server and its address."""
    command = [sys.executable, "-m", "albireo.cli", "serve", "--port", "0", "--disable-uvicorn-access-log", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"albireo ready: (http\S+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        threading.Thread(target=sys.stderr.writelines, args=(process.stderr,), daemon=True).start()
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=400, help="of the longest stream")
    parser.add_argument("--shutdown-timeout", type=int, default=20)
    parser.add_argument("serve", nargs="*", help="flags of `albireo-run serve`, behind --")
    args = parser.parse_args()
    lengths = [max(1, args.max_tokens * (1 + 9 * i // max(1, args.streams - 1)) // 10) for i in range(args.streams)]
    flags = ["--shutdown-timeout", str(args.shutdown_timeout), "--served-model-name", "albireo-demo", *args.serve]
    with serving(flags) as (process, url), ThreadPoolExecutor(args.streams + LATE_CLIENTS) as pool:
        address = urlsplit(url)
        load = Load(address.hostname or "", address.port or 0)
        for index, length in enumerate(lengths):
            pool.submit(load.stream, index, length)
        while sum(load.outcomes.values()) < args.streams / 4:
            time.sleep(0.01)
        num_ended = sum(load.outcomes.values())
        process.send_signal(signal.SIGTERM)
        begin_s = time.monotonic()
        time.sleep(0.1)
        for _ in range(LATE_CLIENTS):
            pool.submit(load.ask_late)
        code = process.wait(args.shutdown_timeout + 60)
        seconds = time.monotonic() - begin_s
    return report(load, args.streams, num_ended, code, seconds)


def report(load: Load, num_streams: int, num_ended: int, code: int, seconds: float) -> int:
    num_truncated = sum(count for outcome, count in load.outcomes.items() if outcome.startswith("truncated"))
    print(f"{describe_machine()}\n{' '.join(['python', *sys.argv])}\n")
    print(f"streams                        {num_streams}, of which {num_ended} had ended before SIGTERM")
    print(f"finished                       {load.outcomes['finished']}")
    print(f"ended with an error event      {load.outcomes['ended with an error event']}")
    print(f"truncated                      {num_truncated}")
    print(f"refused with 503               {load.late['503']}")
    for outcome, count in sorted((load.outcomes + load.late).items()):
        if outcome not in ("finished", "ended with an error event", "503"):
            print(f"{outcome:<30} {count}")
    print(f"exit code                      {code}, {seconds:.1f} s after SIGTERM")
    bad = [outcome for outcome in load.late if outcome not in ("200", "503", "connection closed")]
    return int(bool(num_truncated or bad or code or sum(load.outcomes.values()) != num_streams))


if __name__ == "__main__":
    sys.exit(main())
