"""Where things lie in a collectives segment."""

import mmap
import os

import pytest

from albireo.shm import layout, segment
from albireo.shm.collective_segment import CollectiveSegment
from albireo.shm.segment import SegmentError


def test_a_rank_finds_the_geometry_that_the_supervisor_chose() -> None:
    geometry = CollectiveSegment(3, 5000)
    fd = segment.create("collectives", geometry.size)
    geometry.initialise(fd)
    attached = CollectiveSegment.attach(fd, 3)
    os.close(fd)
    assert attached.geometry.buffer_bytes == -(-5000 // mmap.PAGESIZE) * mmap.PAGESIZE
    assert attached.geometry.size == geometry.size
    assert attached.ranks.shape == (3,)
    assert attached.address % mmap.PAGESIZE == 0


def test_counters_of_different_ranks_share_no_cache_line_and_buffers_share_no_page() -> None:
    geometry = CollectiveSegment(8, 1)
    assert layout.COLLECTIVE_RANK.itemsize == layout.COLLECTIVE_GROUP.itemsize == layout.CACHE_LINE
    assert geometry.group_offset % layout.CACHE_LINE == geometry.ranks_offset % layout.CACHE_LINE == 0
    assert geometry.ranks_offset >= geometry.group_offset + layout.CACHE_LINE
    assert geometry.buffers_offset >= geometry.ranks_offset + 8 * layout.CACHE_LINE
    assert geometry.buffers_offset % mmap.PAGESIZE == geometry.buffer_bytes % mmap.PAGESIZE == 0
    assert geometry.size == geometry.buffers_offset + 16 * geometry.buffer_bytes


def test_a_group_of_another_size_is_refused() -> None:
    geometry = CollectiveSegment(2, 4096)
    fd = segment.create("collectives", geometry.size)
    geometry.initialise(fd)
    with pytest.raises(SegmentError, match="num_consumers is 2, expected 4"):
        CollectiveSegment.attach(fd, 4)
    os.close(fd)
