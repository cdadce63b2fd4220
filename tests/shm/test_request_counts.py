"""The segment in which frontends count their requests."""

import os
from collections.abc import Iterator

import pytest

from albireo.shm import segment
from albireo.shm.request_counts import initialise, map_request_counts, request_counts_bytes
from albireo.shm.segment import SegmentError


@pytest.fixture
def fd() -> Iterator[int]:
    fd = segment.create("requests", request_counts_bytes(3))
    yield fd
    os.close(fd)


def test_each_frontend_has_a_part_of_its_own_that_all_see(fd: int) -> None:
    initialise(fd, 3)
    writer, reader = map_request_counts(fd), map_request_counts(fd)
    assert len(writer) == 3
    writer[1]["finished_stop"] = 5
    writer[2]["queue_time"]["buckets"][22] = 7
    assert reader["finished_stop"].tolist() == [0, 5, 0]
    assert reader["queue_time"]["buckets"][:, 22].tolist() == [0, 0, 7]


def test_another_segment_is_refused(fd: int) -> None:
    with pytest.raises(SegmentError, match="magic"):
        map_request_counts(fd)
