"""What frontends tell each other of where requests go."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from albireo.shm import segment
from albireo.shm.routes import LOG_CHUNKS, Routes, clear_load, initialise, routes_bytes
from albireo.shm.segment import SegmentError

NUM_REPLICAS = 2
NUM_FRONTENDS = 3


@pytest.fixture
def fd() -> Iterator[int]:
    fd = segment.create("routes", routes_bytes(NUM_REPLICAS * NUM_FRONTENDS))
    yield fd
    os.close(fd)


def test_all_hear_once_what_one_tells_and_it_does_not_hear_itself(fd: int) -> None:
    initialise(fd, NUM_REPLICAS * NUM_FRONTENDS)
    teller, *others = (Routes(fd, NUM_REPLICAS, index) for index in range(NUM_FRONTENDS))
    teller.tell(1, [5, 6])
    teller.tell(1, [7, 2**64 - 1])
    assert [list(other.hear()) for other in others] == [[(1, [5, 6, 7, 2**64 - 1])]] * 2
    assert list(teller.hear()) == list(others[0].hear()) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, LOG_CHUNKS + 5), max_size=8), hears=st.lists(st.booleans(), min_size=8, max_size=8)
)
def test_who_is_late_hears_the_latest(fd: int, sizes: list[int], hears: list[bool]) -> None:
    initialise(fd, NUM_REPLICAS * NUM_FRONTENDS)
    teller, other = Routes(fd, NUM_REPLICAS, 0), Routes(fd, NUM_REPLICAS, 2)
    list(other.hear())
    told: list[int] = []
    for size, hears_now in zip(sizes, hears, strict=False):
        chunks = [len(told) + number for number in range(size)]
        teller.tell(0, chunks)
        told += chunks[-LOG_CHUNKS:]
        if hears_now:
            assert list(other.hear()) == ([(0, told[-LOG_CHUNKS:])] if told else [])
            told = []
    assert list(other.hear()) == ([(0, told[-LOG_CHUNKS:])] if told else [])
    teller.forget(0)


def test_who_comes_later_hears_what_caches_still_have_of_its_predecessor_too(fd: int) -> None:
    initialise(fd, NUM_REPLICAS * NUM_FRONTENDS)
    one, other = Routes(fd, NUM_REPLICAS, 0), Routes(fd, NUM_REPLICAS, 1)
    one.tell(0, [1])
    other.tell(0, [2])
    other.tell(1, [3])
    one.forget(0)
    one.tell(0, [4])
    for each in (one, other):
        list(each.hear())
    assert list(Routes(fd, NUM_REPLICAS, 1).hear()) == [(0, [4]), (0, [2]), (1, [3])]


def test_a_load_is_the_sum_of_the_frontends_and_a_dead_one_has_none(fd: int) -> None:
    initialise(fd, NUM_REPLICAS * NUM_FRONTENDS)
    views = [Routes(fd, NUM_REPLICAS, index) for index in range(NUM_FRONTENDS)]
    views[0].loads[1].say(3, 1000)
    views[2].loads[1].say(4, 500)
    views[2].loads[1].say(5, 600)
    assert [(load.num_sequences, load.num_prompt_tokens) for load in views[1].loads] == [(0, 0), (8, 1600)]
    clear_load(fd, NUM_REPLICAS, 2)
    assert [(load.num_sequences, load.num_prompt_tokens) for load in views[1].loads] == [(0, 0), (3, 1000)]


def test_another_segment_is_refused(fd: int) -> None:
    with pytest.raises(SegmentError, match="magic"):
        Routes(fd, NUM_REPLICAS, 0)
