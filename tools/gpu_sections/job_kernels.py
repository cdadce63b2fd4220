"""The kernels' own benchmarks, those that are there; their output goes into kernels.txt."""

import subprocess
import sys
import time
from pathlib import Path

from gpu_sections.job import Job
from gpu_sections.jobs import REPO, TOOLS, last_lines

NAMES = ("bench_cuda_attention.py", "bench_cuda_layers.py", "bench_cuda_sampling.py")
TIMEOUT_S = 60.0


def main() -> None:
    job = Job.open()
    output = Path(job.options.out) / "kernels.txt"
    for name in NAMES:
        if not (TOOLS / name).exists():
            job.row("kernels", name, "not there")
            continue
        job.say(f"kernels: {name}")
        begin = time.monotonic()
        with output.open("ab") as file:
            file.write(f"\n$ {name}\n".encode())
            file.flush()
            before = output.stat().st_size
            value = run(name, file.fileno())
        lines = output.read_bytes()[before:].decode(errors="replace").splitlines()
        notes = last_lines(lines, 4) if value != "ran" else ()
        job.row(
            "kernels",
            name,
            f"{value}, {len(lines)} lines in kernels.txt",
            "",
            f"{time.monotonic() - begin:.0f} s",
            *notes,
        )


def run(name: str, file: int) -> str:
    """How it ended."""
    try:
        code = subprocess.run(
            [sys.executable, str(TOOLS / name)], cwd=REPO, stdout=file, stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S, check=False,
        ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"ended after {TIMEOUT_S:.0f} s"
    return "ran" if code == 0 else f"exit code {code}"


if __name__ == "__main__":
    main()
