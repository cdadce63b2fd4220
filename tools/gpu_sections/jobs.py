"""The parent's end of a job: a process of its own, its progress passed on, ended when its time is over."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from gpu_sections.job import JobInput, JobResult

TOOLS = Path(__file__).parents[1]
REPO = TOOLS.parent
TAIL_LINES = 6
_GRACE_S = 5.0


class JobEnd(Struct):
    """How a job ended, and what it left."""

    result: JobResult
    problem: str | None
    """None: it ended well."""
    tail: tuple[str, ...] = ()
    """The last lines of its log, where it did not."""


def environment() -> dict[str, str]:
    """Ours, in which the repository and the tools can be imported, installed or not."""
    path = os.pathsep.join([str(REPO), str(TOOLS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


def run_job(module: str, given: JobInput, log: Path, say: Callable[[str], None]) -> JobEnd:
    """Runs `gpu_sections.<module>`; what it prints goes to `say` line by line, what it complains of to the log."""
    Path(given.result).unlink(missing_ok=True)
    begin = log.stat().st_size if log.exists() else 0
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", f"gpu_sections.{module}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            cwd=REPO, env=environment(), process_group=0,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(given))
            process.stdin.close()
        problem = _wait(process, process.stdout, given.timeout_s, say)
    return JobEnd(_result(Path(given.result)), problem, () if problem is None else tail(log, begin))


def _wait(
    process: subprocess.Popen[bytes], output: IO[bytes], timeout_s: float, say: Callable[[str], None]
) -> str | None:
    """What went wrong, if anything did."""

    def listen() -> None:
        with output:
            for line in output:
                say(line.decode(errors="replace").rstrip())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        code = process.wait(timeout_s)
        problem = None if code == 0 else f"failed with exit code {code}"
    except subprocess.TimeoutExpired:
        problem = f"ended after {timeout_s:.0f} s"
    finally:
        end_group(process)
    listener.join(1.0)
    return problem


def end_group(process: subprocess.Popen[bytes], grace_s: float = _GRACE_S) -> None:
    """SIGTERM to all that a process of its own group has left, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and _is_there(process):
            time.sleep(0.05)
    process.wait()


def _is_there(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # a zombie would count as there
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def tail(log: Path, begin: int = 0, count: int = TAIL_LINES) -> tuple[str, ...]:
    """The last lines that say something, from the byte `begin` on."""
    try:
        with log.open("rb") as file:
            file.seek(begin)
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    return last_lines(text.splitlines(), count)


def last_lines(lines: Sequence[str], count: int = TAIL_LINES) -> tuple[str, ...]:
    return tuple(line.rstrip()[:300] for line in lines if line.strip())[-count:]


def _result(path: Path) -> JobResult:
    try:
        return msgspec.json.decode(path.read_bytes(), type=JobResult)
    except (OSError, msgspec.MsgspecError):
        return JobResult()
