"""schemathesis against a running server's own /openapi.json: no 5xx, no status that the document does not name.

    pip install schemathesis
    python tools/fuzz_api.py --minutes 10

Starts a server on the bundled demo model with small bounds, so that a request that is taken ends soon, and runs the
`schemathesis` that is on the path (or --schemathesis) until the time is up, with a new seed each round. Exit code 1 if
a round found something, or if the server does not answer at the end.
"""

import argparse
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "e2e"))
from server import Server

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
EVENTS = "/engine/events"
"""It has no end."""


def fuzz(schemathesis: str, url: str, seed: int, max_examples: int, minutes: float) -> int:
    """One round; returns its exit code."""
    command = [
        schemathesis, "run", f"{url}/openapi.json", "--checks", CHECKS, "--exclude-path", EVENTS, "--seed", str(seed),
        "--max-examples", str(max_examples), "--request-timeout", "30", "--phases", "examples,coverage,fuzzing",
        "--suppress-health-check", "all", "--continue-on-failure",
    ]  # fmt: skip
    try:
        return subprocess.run(command, check=False, timeout=60 * minutes).returncode
    except subprocess.TimeoutExpired:
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--max-examples", type=int, default=100, help="per operation and round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--schemathesis", default="schemathesis")
    args = parser.parse_args()
    flags = ("--kv-cache-bytes", "64M", "--max-model-len", "256", "--disable-uvicorn-access-log",
             "--enable-auto-tool-choice", "--tool-call-parser", "hermes")  # fmt: skip
    found, seed, ends = 0, args.seed, time.monotonic() + 60 * args.minutes
    with Server(*flags) as server:
        while (left := ends - time.monotonic()) > 0:
            found |= fuzz(args.schemathesis, server.url, seed, args.max_examples, left / 60)
            seed += 1
        with urllib.request.urlopen(f"{server.url}/health", timeout=10) as response:
            is_well = response.status == 200
        for line in server.lines:
            if "ERROR" in line or "Traceback" in line:
                print(line)
    print(f"{seed - args.seed} rounds; the server is {'well' if is_well else 'NOT WELL'}")
    return 0 if is_well and not found else 1


if __name__ == "__main__":
    sys.exit(main())
