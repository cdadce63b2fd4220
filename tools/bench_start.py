"""How long a server takes from its command to the first token of a streamed completion, and what it then holds.

    tools/bench_start.py --model DIR [--model DIR ...] [--repeats 3] [--out start.md] \\
        --launch 'albireo=albireo-run serve {model} --port {port} --kv-cache-bytes 64M' \\
        --launch 'vllm=serve_vllm.sh {model} {port}'

Servers run one at a time. `first` is a start with an empty kernel cache (NUMBA_CACHE_DIR in a new folder; other
servers' own caches are left as they are), `later` the median of the starts after it, with that cache; weights are in
the page cache by then. `healthy` is the first good answer of the health check. Memory is read after the first token,
summed over all processes of the server: PSS (shared pages once) and RSS (shared pages in each). It includes what
of the KV cache has been written, so give every server a small one and the same. To compare two checkouts, change the
folder too (`env -C`): `python -m` looks in the current one first.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct
from peer_report import without_folders
from peer_server import PeerServer, ServerError

PROMPT = "The first token of this"
COLUMNS = "| model | server | start | healthy s | first token s | PSS MiB | RSS MiB |"


class Start(Struct, frozen=True):
    """One start, in seconds from the command, and memory in MiB."""

    healthy_s: float
    first_token_s: float
    pss_mib: float
    rss_mib: float


def measure(name: str, command: str, model: str, log_dir: Path, timeout_s: float) -> Start:
    """Starts the server, asks for one completion, stops it. Raises ServerError."""
    server = PeerServer(name, command, None, model)
    begin = time.monotonic()
    try:
        server.start(log_dir, "/health", timeout_s)
        healthy = time.monotonic()
        wait_for_token(server.url, model, timeout_s)
        token = time.monotonic()
        pss, rss = server.memory_gib() or 0.0, server.resident_gib() or 0.0
    finally:
        server.stop()
    return Start(healthy - begin, token - begin, pss * 1024, rss * 1024)


def wait_for_token(url: str, model: str, timeout_s: float) -> None:
    """Streams one completion and returns at its first event that carries a choice. Raises ServerError."""
    body = {"model": served_model(url), "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "stream": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            for line in response:
                if line.startswith(b"data: {") and json.loads(line[6:]).get("choices"):
                    return
    except (OSError, urllib.error.URLError) as error:
        raise ServerError(f"{url} gave no token for {Path(model).name}: {error}") from None
    raise ServerError(f"{url} ended its stream for {Path(model).name} without a token")


def served_model(url: str) -> str:
    """The name under which the server's first model is asked for."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as response:
        return str(json.load(response)["data"][0]["id"])


def measure_all(args: argparse.Namespace, log_dir: Path) -> list[str]:
    """A table's lines: for every model and server the first start and the median of the later ones."""
    rows = []
    for model in args.model:
        for name, _, command in (launch.partition("=") for launch in args.launch):
            with tempfile.TemporaryDirectory(prefix="bench_start_") as cache:
                os.environ["NUMBA_CACHE_DIR"] = cache
                starts = []
                for number in range(1 + args.repeats):
                    starts.append(measure(name, command, model, log_dir, args.start_timeout))
                    print(f"{Path(model).name} {name} start {number}: {starts[-1]}", file=sys.stderr)
            rows.append(table_row(model, name, "first", starts[:1]))
            if starts[1:]:
                rows.append(table_row(model, name, "later", starts[1:]))
    return rows


def table_row(model: str, name: str, kind: str, starts: list[Start]) -> str:
    """Medians, and the range of the time to the first token where there are several."""
    tokens = [start.first_token_s for start in starts]
    spread = f" ({min(tokens):.1f}–{max(tokens):.1f})" if len(starts) > 1 else ""
    healthy = statistics.median(start.healthy_s for start in starts)
    pss, rss = (statistics.median(sizes) for sizes in ([s.pss_mib for s in starts], [s.rss_mib for s in starts]))
    token = f"{statistics.median(tokens):.1f}{spread}"
    return f"| {Path(model).name} | {name} | {kind} | {healthy:.1f} | {token} | {pss:.0f} | {rss:.0f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="checkpoint folder: {model} in commands")
    parser.add_argument("--launch", action="append", required=True, metavar="NAME=COMMAND", help="with {model}, {port}")
    parser.add_argument("--repeats", type=int, default=3, help="later starts per server")
    parser.add_argument("--start-timeout", type=float, default=600.0, metavar="SECONDS")
    parser.add_argument("--out", type=Path, help="Markdown file to write the table to as well")
    args = parser.parse_args()
    if not all("=" in launch for launch in args.launch):
        parser.error("--launch takes NAME=COMMAND")
    try:
        rows = measure_all(args, Path(tempfile.mkdtemp(prefix="bench_start_logs_")))
    except ServerError as error:
        print(f"bench_start: {error}", file=sys.stderr)
        return 1
    command = " ".join(f"'{part}'" if " " in part else part for part in ["tools/bench_start.py", *sys.argv[1:]])
    date = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
    rule = "|" + " --- |" * COLUMNS.count("| ")
    report = "\n".join([date, "", COLUMNS, rule, *rows, "", f"`{without_folders(command)}`", ""])
    print(report)
    if args.out is not None:
        args.out.write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
