"""CPU time of other processes, as the kernel counts it in /proc."""

import os
from collections.abc import Mapping
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of `pid` so far, in the kernel's ticks (usually 10 ms). Raises OSError
    when there is no such process."""
    # the process's name stands in brackets and may hold anything; utime and stime are fields 14 and 15 of proc(5)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def cpu_by_role(pids: Mapping[str, int]) -> dict[str, float]:
    """Seconds so far by role: `worker` is the sum of worker-0, worker-1, ..."""
    seconds: dict[str, float] = {}
    for name, pid in pids.items():
        role = name.rpartition("-")[0]
        seconds[role] = seconds.get(role, 0.0) + cpu_seconds(pid)
    return seconds
