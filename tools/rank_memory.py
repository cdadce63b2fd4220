"""Peak resident memory of every rank, by degree: what a rank reads of a checkpoint and keeps of it.

    python tools/rank_memory.py MODEL [--ranks 1 2 4] [--kv-cache-bytes 256M]

Starts a server per degree, sends it a prompt of 256 tokens, and reads the workers' peaks from /proc. `peak` is VmHWM,
`private` what is the rank's own at the end (anonymous memory: packed weights, KV pages in use, torch and numba);
`mapped` is what it then maps of files, which ranks share (libraries, the embedding table, checkpoint pages). `weights`
is the rank's share as stored, the head counted beside a tied table.
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import msgspec

from albireo.checkpoint import read_checkpoint
from albireo.checkpoint.weight_shapes import weight_bytes

MIB = 2**20


def start(model: str, size: int, kv_cache_bytes: str) -> tuple[subprocess.Popen[str], str]:
    """The server and its URL. Raises RuntimeError when it does not start."""
    flags = ["-tp", str(size), "--cpu-threads", str(max(2, size)), "--kv-cache-bytes", kv_cache_bytes, "--port", "0"]
    command = [sys.executable, "-m", "albireo.cli", "serve", model, "--max-model-len", "1024", *flags]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if match := re.search(r"albireo ready: (http://\S+)", line):
            return server, match[1]
    raise RuntimeError(f"the server with {size} ranks did not start")


def complete(url: str) -> None:
    body = {"prompt": [7] * 256, "max_tokens": 16, "ignore_eos": True, "temperature": 0.8, "top_p": 0.95}
    request = urllib.request.Request(
        f"{url}/v1/completions", msgspec.json.encode(body), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request).read()


def workers_of(server: int) -> dict[str, int]:
    """Pids of a supervisor's workers by name."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            name = (entry / "cmdline").read_text().split("\0")[0]
        except OSError:
            continue
        if parent == server and "worker" in name:
            found[name] = int(entry.name)
    return dict(sorted(found.items()))


def status_mib(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    return {name: int(fields[name]) * 1024 / MIB for name in ("VmHWM", "RssAnon", "RssFile")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--kv-cache-bytes", default="256M")
    args = parser.parse_args()
    config = read_checkpoint(args.model).model
    total = weight_bytes(config, "float32" if config.dtype == "float32" else "bfloat16")
    print(f"`python {shlex.join(sys.argv).replace(args.model, Path(args.model).name)}`\n")
    print("| t | rank | weights, MiB | peak, MiB | private, MiB | mapped, MiB |\n|--:|--:|--:|--:|--:|--:|")
    for size in args.ranks:
        server, url = start(args.model, size, args.kv_cache_bytes)
        try:
            complete(url)
            time.sleep(1)
            for rank, pid in enumerate(workers_of(server.pid).values()):
                memory = status_mib(pid)
                cells = [total / size / MIB, memory["VmHWM"], memory["RssAnon"], memory["RssFile"]]
                print(f"| {size} | {rank} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |", flush=True)
        finally:
            server.terminate()
            server.wait()
            assert server.stderr is not None
            server.stderr.close()


if __name__ == "__main__":
    main()
