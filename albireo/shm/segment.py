"""Anonymous shared-memory segments: made by the supervisor, inherited by its children as file descriptors.

A memfd has no name: nothing is left in /dev/shm after a kill -9, nothing can collide, no other user can open it.
"""

import fcntl
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from albireo.shm import layout


class SegmentError(Exception):
    """A segment is not what this process expects, or there is no memory for it."""


CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes() -> int:
    """What can be allocated without swapping: the kernel's MemAvailable, or what a container's limit leaves."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, cgroup_room_bytes(CGROUP))
    raise SegmentError("the kernel reports no MemAvailable in /proc/meminfo")


def cgroup_room_bytes(cgroup: Path) -> int:
    """How much more a cgroup (version 2) may use; its file cache counts as used. Without a limit: 2^63."""
    try:
        limit, used = (cgroup / "memory.max").read_text(), (cgroup / "memory.current").read_text()
    except OSError:
        return 2**63
    return 2**63 if limit.strip() == "max" else max(0, int(limit) - int(used))


def create(name: str, size: int) -> int:
    """A zero-filled segment of `size` bytes; returns its file descriptor, which closes on exec unless passed on.

    Raises SegmentError when the machine has less free memory than that: a write to a segment that cannot be backed
    would be a SIGBUS in the middle of a step.
    """
    available = available_memory_bytes()
    if size > available:
        raise SegmentError(f"shared memory for {name} needs {size} bytes and {available} are available")
    fd = os.memfd_create(f"albireo-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


class Segment:
    """A mapped segment. Views of it live as long as they are referenced; the mapping goes with the last of them."""

    def __init__(self, fd: int, writable: bool = True) -> None:
        size = os.fstat(fd).st_size
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self.data: npt.NDArray[np.uint8] = np.frombuffer(mmap.mmap(fd, size, access=access), np.uint8)

    def array(self, dtype: np.dtype[Any], offset: int, count: int) -> npt.NDArray[Any]:
        """`count` records at `offset` bytes, in place."""
        return self.data[offset : offset + dtype.itemsize * count].view(dtype)

    def header(self) -> npt.NDArray[Any]:
        return self.array(layout.SEGMENT_HEADER, 0, 1)

    def write_header(self, kind: int, **fields: int) -> None:
        """Done once by the supervisor, before any other process maps the segment."""
        header = self.header()
        header["magic"], header["version"], header["kind"] = layout.MAGIC, layout.VERSION, kind
        for name, value in fields.items():
            header[name] = value

    def check_header(self, kind: int, **fields: int) -> None:
        """Raises SegmentError unless this is a segment of that kind, version and geometry."""
        expected = {"magic": layout.MAGIC, "version": layout.VERSION, "kind": kind, **fields}
        header = self.header()[0]
        for name, value in expected.items():
            if int(header[name]) != value:
                raise SegmentError(f"segment header field {name} is {int(header[name])}, expected {value}")


def align(size: int) -> int:
    """`size` rounded up to layout.ALIGNMENT."""
    return -(-size // layout.ALIGNMENT) * layout.ALIGNMENT
