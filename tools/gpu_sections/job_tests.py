"""pytest on the GPU's tests: how many passed, and the first that did not."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from gpu_sections.job import Job
from gpu_sections.jobs import REPO, last_lines

FOLDER = "tests/gpu_worker/cuda"
MAX_FAILURES = 8
_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|deselected|xfailed|xpassed|warnings?)")


def main() -> None:
    job = Job.open()
    # addopts deselects what needs a GPU; a test that hangs must not take the others' time
    command = [sys.executable, "-m", "pytest", FOLDER, "-m", "not slow", "-o", "addopts=", "-q", "-rfE", "--tb=short"]
    command += ["-p", "no:cacheprovider", "-p", "no:benchmark"]  # pytest-benchmark fails beside xdist
    if importlib.util.find_spec("pytest_timeout"):
        command.append("--timeout=60")
    if job.options.test_workers and importlib.util.find_spec("xdist"):
        command += ["-n", str(job.options.test_workers)]
    output = Path(job.options.out) / "tests.txt"
    job.say(f"tests: {FOLDER}")
    with output.open("wb") as file:
        code = subprocess.run(command, cwd=REPO, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    lines = output.read_text(errors="replace").splitlines()
    counts, failures = read(lines)
    job.detail("tests", {"counts": counts, "failures": failures, "exit_code": code})
    value = ", ".join(f"{count} {what}" for what, count in counts.items()) or f"no summary, exit code {code}"
    notes = failures[:MAX_FAILURES] if counts else list(last_lines(lines))
    job.row("tests", FOLDER, value, "all pass", "passed" if code == 0 else "NOT PASSED", *notes)


def read(lines: list[str]) -> tuple[dict[str, int], list[str]]:
    """pytest's last line as counts, and a line for each test that failed."""
    counts: dict[str, int] = {}
    for line in reversed(lines):
        found = _COUNT.findall(line)
        if found and " in " in line:
            counts = {what: int(count) for count, what in found}
            break
    return counts, [line for line in lines if line.startswith(("FAILED ", "ERROR "))]


if __name__ == "__main__":
    main()
