"""What the frontends count of their requests, in shared memory: each writes its own parts, one for each replica, and
any shows the sums."""

from typing import Any

import numpy.typing as npt

from albireo.shm import layout
from albireo.shm.segment import Segment


def request_counts_bytes(num_counters: int) -> int:
    """Size of the requests segment."""
    return layout.SEGMENT_HEADER.itemsize + num_counters * layout.REQUEST_COUNTS.itemsize


def initialise(fd: int, num_counters: int) -> None:
    """Writes the header; the supervisor's part."""
    Segment(fd).write_header(layout.KIND_REQUESTS, num_consumers=num_counters)


def map_request_counts(fd: int) -> npt.NDArray[Any]:
    """REQUEST_COUNTS[num_counters], in place: of all frontends' requests to the first replica, then to the next. Raises
    SegmentError when this is another kind of segment."""
    segment = Segment(fd)
    segment.check_header(layout.KIND_REQUESTS)
    num_counters = int(segment.header()["num_consumers"][0])
    return segment.array(layout.REQUEST_COUNTS, layout.SEGMENT_HEADER.itemsize, num_counters)
