"""Interval arithmetic against a reference that looks at every nanosecond."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from albireo.trace.intervals import covered_ns, union

STRETCHES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted), max_size=12)


def bounds(stretches: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(stretches, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def moments(stretches: list[list[int]]) -> set[int]:
    return {moment for begin, end in stretches for moment in range(begin, end)}


@given(STRETCHES)
def test_a_union_is_the_same_time_in_disjoint_ascending_stretches(stretches: list[list[int]]) -> None:
    merged = union(*bounds(stretches))
    pairs = [list(pair) for pair in zip(merged.begin_ns.tolist(), merged.end_ns.tolist(), strict=True)]
    assert moments(pairs) == moments(stretches)
    assert all(begin < end for begin, end in pairs)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(pairs))
    assert merged.total_ns == len(moments(stretches))


@given(STRETCHES, STRETCHES)
def test_covered_time_is_what_both_have_in_common(stretches: list[list[int]], within: list[list[int]]) -> None:
    covered = covered_ns(*bounds(stretches), union(*bounds(within)))
    assert covered.tolist() == [len(moments([stretch]) & moments(within)) for stretch in stretches]
