"""What the machine has, read from the kernel: processor, memory, limits of this process."""

import os
import resource
from pathlib import Path

from msgspec import Struct

from albireo.bench.machine import describe_machine
from albireo.shm.segment import CGROUP, available_memory_bytes

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Instructions that our kernels, or oneDNN's, make use of, by the kernel's names."""


class Machine(Struct, frozen=True):
    """Bytes where nothing else is said; None where there is no limit."""

    cpu: str
    cores: int
    """That this process may use."""
    cpu_quota: float | None
    """Cores' worth of time that the cgroup gets."""
    cpu_flags: tuple[str, ...]
    """Of CPU_FLAGS, those that are there."""
    system: str
    memory: int
    available: int
    """Without swapping, within the cgroup's limit."""
    cgroup_limit: int | None
    memlock_limit: int | None
    open_files_limit: int | None
    has_memfd: bool


def read_machine() -> Machine:
    """Raises OSError, SegmentError on a system without /proc."""
    described = describe_machine()
    return Machine(
        cpu=str(described["cpu"]),
        cores=int(described["cores"]),
        cpu_quota=read_cpu_quota(CGROUP),
        cpu_flags=_cpu_flags(),
        system=str(described["system"]),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        available=available_memory_bytes(),
        cgroup_limit=read_cgroup_limit(CGROUP),
        memlock_limit=_limit(resource.RLIMIT_MEMLOCK),
        open_files_limit=_limit(resource.RLIMIT_NOFILE),
        has_memfd=_can_make_memfd(),
    )


def read_cpu_quota(cgroup: Path) -> float | None:
    """Cores' worth of time in a cgroup (version 2)."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def read_cgroup_limit(cgroup: Path) -> int | None:
    """Bytes that a cgroup (version 2) may use."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
    except OSError:
        return None
    return None if limit == "max" else int(limit)


def _cpu_flags() -> tuple[str, ...]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return tuple(name for name in CPU_FLAGS if name in flags)


def _limit(kind: int) -> int | None:
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft


def _can_make_memfd() -> bool:
    try:
        os.close(os.memfd_create("albireo-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    except OSError:
        return False
    return True
