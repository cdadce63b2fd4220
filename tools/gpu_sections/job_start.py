"""Seconds from the command to the first streamed token, with weights on disk; what the server said, and when.

The checkpoint is dropped from the page cache before the first start, which reads the disk. The second finds its files
in memory.
"""

import json
import re
import shutil
import time
import urllib.request
from pathlib import Path

from gpu_sections.job import Job
from gpu_sections.model import drop_page_cache, read_model, write_model_folder, write_weights
from gpu_sections.servers import Server, model_name

AGAIN_S = 45.0
"""A second start is tried where so much time, and the first start's, is left."""
_STAGE = re.compile(r"^([\w-]+): (.+)$")


def main() -> None:
    job = Job.open()
    began = time.monotonic()
    kept = job.options.weights == "file"  # the measured servers' own checkpoint
    folder = Path(job.given.model) if kept else Path(job.options.work) / "start"
    try:
        if not kept:
            write(job, folder)
        drop_page_cache(folder)
        first_s = start(job, folder, "on disk")
        left_s = job.given.timeout_s - (time.monotonic() - began)
        if left_s > first_s + AGAIN_S:
            start(job, folder, "cached")
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def write(job: Job, folder: Path) -> None:
    write_model_folder(folder, job.options.model_shape)
    job.say(f"start: writing weights to {folder}")
    before = time.monotonic()
    nbytes = write_weights(folder, read_model(folder))
    took_s = time.monotonic() - before
    job.say(f"start: {nbytes / 1e9:.1f} GB written in {took_s:.1f} s ({nbytes / 1e9 / took_s:.2f} GB/s)")


def start(job: Job, folder: Path, where: str) -> float:
    """Seconds to the first token, and a row of its parts. Raises ServerError, OSError."""
    flags = [str(folder), "--device", job.options.device, "--max-model-len", "4096", *job.options.serve_flags]
    flags += ["--kv-cache-bytes", job.options.workload.kv_cache_bytes]
    with Server(flags, Path(job.options.out) / "servers.txt", job.given.timeout_s) as server:
        ready_s = server.elapsed_s()
        if not server.answers():
            raise OSError("the server is ready and its health check is not good")
        healthy_s = server.elapsed_s()
        stream_one_token(server.url)
        token_s = server.elapsed_s()
        lines = list(server.lines)
    parts = stages(lines)
    job.detail(f"start, weights {where}", {"lines": lines, "healthy_s": healthy_s, "token_s": token_s})
    notes = ["; ".join(f"{at_s:.1f} s {what}" for at_s, what in parts)]
    job.row(
        "start",
        f"command to first token, weights {where}",
        f"{token_s:.1f} s",
        f"ready {ready_s:.1f} s, healthy {healthy_s:.1f} s",
        f"first token {token_s - healthy_s:.2f} s after",
        *notes,
    )
    return token_s


def stages(lines: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """When each process began with what: the supervisor says every change of a stage once."""
    return [(at_s, line) for at_s, line in lines if _STAGE.match(line) and not line.startswith(("albireo", "http"))]


def stream_one_token(url: str) -> None:
    """Returns at the first event that carries a choice. Raises OSError."""
    body = {"model": model_name(url), "prompt": [5, 6, 7], "max_tokens": 1, "temperature": 0, "stream": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        for line in response:
            if line.startswith(b"data: {") and json.loads(line[6:]).get("choices"):
                return
    raise OSError("the stream ended without a token")


if __name__ == "__main__":
    main()
