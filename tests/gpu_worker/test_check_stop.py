"""Stop ids on the device."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from albireo.gpu_worker.sampling.stop import check_stop
from albireo.limits import MAX_STOP_TOKEN_IDS
from albireo.messages import Finish


def finish_of(tokens: list[int], slots: list[int], eos: list[list[int]], stop: list[list[int]]) -> list[int]:
    """`check_stop` on a table of one slot per entry of `eos` and `stop`, unused entries holding token 3."""
    table = np.full((len(eos), MAX_STOP_TOKEN_IDS), 3, np.int32)
    for slot, ids in enumerate(map(list.__add__, eos, stop)):
        table[slot, : len(ids)] = ids
    num_eos, num_stop = (np.array([len(ids) for ids in column], np.int32) for column in (eos, stop))
    rows = np.array(tokens, np.int32), np.array(slots, np.int32)
    found: list[int] = check_stop(*rows, table, num_eos, num_stop).tolist()
    return found


def test_each_row_is_checked_against_its_own_slot() -> None:
    eos, stop = [[1, 2], []], [[5], [1]]
    assert finish_of([1, 1, 5, 5], [0, 1, 0, 1], eos, stop) == [
        Finish.EOS,
        Finish.STOP_TOKEN,
        Finish.STOP_TOKEN,
        Finish.NONE,
    ]


def test_an_id_that_is_both_counts_as_eos() -> None:
    assert finish_of([4], [0], [[4]], [[4]]) == [Finish.EOS]


def test_entries_behind_the_stop_ids_are_not_ids() -> None:
    assert finish_of([3, -1], [0, 0], [[1]], [[2]]) == [Finish.NONE, Finish.NONE]


def test_a_full_table_and_an_empty_one_are_checked() -> None:
    full = list(range(100, 100 + MAX_STOP_TOKEN_IDS))
    assert finish_of([115, 115], [0, 1], [full, []], [[], []]) == [Finish.EOS, Finish.NONE]


ids = st.lists(st.integers(0, 12), max_size=MAX_STOP_TOKEN_IDS // 2)


@settings(deadline=None)
@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=5), st.data())
def test_any_table_gives_what_a_loop_gives(table: list[tuple[list[int], list[int]]], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(st.integers(-1, 12), st.integers(0, len(table) - 1)), min_size=1, max_size=20))
    expected = [
        Finish.EOS if token in table[slot][0] else Finish.STOP_TOKEN if token in table[slot][1] else Finish.NONE
        for token, slot in rows
    ]
    tokens, slots = [token for token, _ in rows], [slot for _, slot in rows]
    assert finish_of(tokens, slots, [eos for eos, _ in table], [stop for _, stop in table]) == expected
