"""What processes hold and wait for: memory, open files, a CPU, as the kernel counts them in /proc."""

import os
import re
from collections.abc import Mapping
from pathlib import Path


def rss_mib(pid: int) -> float:
    """Resident memory of a process without shared memory, whose pages are touched one by one: RssAnon + RssFile."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(kib) for kib in re.findall(r"Rss(?:Anon|File):\s+(\d+) kB", status)) / 1024


def num_fds(pid: int) -> int:
    """Open file descriptors of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def cpu_wait_s(pid: int) -> float:
    """Seconds in which a process's main thread could have run and had no CPU."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def kernel_tcp_mib() -> float:
    """Memory of all TCP socket buffers of this machine (of this network namespace's view of it)."""
    match = re.search(r"^TCP:.* mem (\d+)", Path("/proc/net/sockstat").read_text(), re.MULTILINE)
    return int(match[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if match else 0.0


class MemoryCourse:
    """Resident memory of some processes at moments that have names."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self.moments: list[str] = []
        self.rss: dict[str, list[float]] = {name: [] for name in pids}
        self.fds: dict[str, list[int]] = {name: [] for name in pids}

    def sample(self, moment: str) -> None:
        self.moments.append(moment)
        for name, pid in self._pids.items():
            self.rss[name].append(rss_mib(pid))
            self.fds[name].append(num_fds(pid))

    def table(self) -> str:
        """Markdown: MiB, with the number of open files in brackets."""
        lines = [
            f"| RSS MiB (open files) | {' | '.join(self.moments)} |",
            f"| --- |{' --- |' * len(self.moments)}",
        ]
        for name, rss in self.rss.items():
            cells = (f"{mib:.1f} ({fds})" for mib, fds in zip(rss, self.fds[name], strict=True))
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def grown(self, since: str, until: str, most_mib: float) -> list[str]:
        """Sentences about those that grew by more than so much between two moments."""
        first, last = self.moments.index(since), self.moments.index(until)
        growth = {name: rss[last] - rss[first] for name, rss in self.rss.items()}
        return [f"{name} grew by {mib:.1f} MiB" for name, mib in growth.items() if mib > most_mib]
