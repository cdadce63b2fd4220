"""The segment through which the ranks of a tensor-parallel group exchange data: geometry and header.

header, COLLECTIVE_GROUP, COLLECTIVE_RANK per rank, then two buffers per rank, each beginning on a page.
The protocol is `gpu_worker.collectives.shm`'s; here nothing is known but where things lie.
"""

import mmap
from typing import Any, Final

import numpy.typing as npt

from albireo.shm import layout
from albireo.shm.segment import Segment

BUFFER_BYTES: Final = 1 << 20
"""One buffer's default size; what is larger goes through in pieces. Measured in docs/benchmarks/cpu-collectives.md."""
BUFFERS_PER_RANK: Final = 2


class CollectiveSegment:
    """Where things lie for `num_ranks` ranks with buffers of `buffer_bytes` (rounded up to pages) each."""

    def __init__(self, num_ranks: int, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.num_ranks = num_ranks
        self.buffer_bytes = _whole_pages(buffer_bytes)
        self.group_offset = layout.SEGMENT_HEADER.itemsize
        self.ranks_offset = self.group_offset + layout.COLLECTIVE_GROUP.itemsize
        self.buffers_offset = _whole_pages(self.ranks_offset + num_ranks * layout.COLLECTIVE_RANK.itemsize)
        self.size = self.buffers_offset + num_ranks * BUFFERS_PER_RANK * self.buffer_bytes

    def initialise(self, fd: int) -> None:
        """Writes the header; the supervisor's part."""
        fields = {"num_slots": BUFFERS_PER_RANK, "slot_bytes": self.buffer_bytes, "num_consumers": self.num_ranks}
        Segment(fd).write_header(layout.KIND_COLLECTIVES, **fields)

    @staticmethod
    def attach(fd: int, num_ranks: int) -> "AttachedCollectives":
        """A rank's part; the size of the buffers stands in the header. Raises SegmentError unless this is the segment
        of a group of `num_ranks`."""
        segment = Segment(fd)
        segment.check_header(layout.KIND_COLLECTIVES, num_slots=BUFFERS_PER_RANK, num_consumers=num_ranks)
        return AttachedCollectives(segment, CollectiveSegment(num_ranks, int(segment.header()["slot_bytes"][0])))


class AttachedCollectives:
    """Views of a mapped segment: `ranks` is COLLECTIVE_RANK [num_ranks]. The mapping lives as long as this object."""

    def __init__(self, segment: Segment, geometry: CollectiveSegment) -> None:
        self.geometry = geometry
        self._segment = segment
        self.ranks: npt.NDArray[Any] = segment.array(layout.COLLECTIVE_RANK, geometry.ranks_offset, geometry.num_ranks)
        self.address: int = segment.data.ctypes.data


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
