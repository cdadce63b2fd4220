"""The grammar masks' segment: what one process publishes, another reads."""

import os
from collections.abc import Iterator

import numpy as np
import pytest

from albireo.shm import segment
from albireo.shm.grammar_masks import GrammarMasks, mask_tag, mask_words


@pytest.fixture
def fd() -> Iterator[int]:
    geometry = GrammarMasks(num_slots=3, vocab_size=1000)
    fd = segment.create("masks", geometry.size)
    geometry.initialise(fd)
    yield fd
    os.close(fd)


def test_what_is_published_is_what_a_reader_sees(fd: int) -> None:
    writer, reader = (GrammarMasks(3, 1000).attach(fd) for _ in range(2))
    assert writer.masks.shape == (3, mask_words(1000)) == (3, 32)
    for slot in range(3):
        writer.clear(slot)
        writer.masks[slot] = np.arange(32) + slot
        writer.publish(slot, mask_tag(generation=2**31 + slot, position=17))
    assert reader.tags.tolist() == [(2**31 + slot) << 32 | 17 for slot in range(3)]
    np.testing.assert_array_equal(reader.masks, np.arange(32) + np.arange(3)[:, None])


def test_a_cleared_place_has_no_mask_and_leaves_its_neighbours_alone(fd: int) -> None:
    table = GrammarMasks(3, 1000).attach(fd)
    table.masks[:] = 7
    for slot in range(3):
        table.publish(slot, mask_tag(1, slot + 1))
    table.clear(1)
    table.masks[1] = 0
    assert table.tags.tolist() == [mask_tag(1, 1), 0, mask_tag(1, 3)]
    assert (table.masks[[0, 2]] == 7).all()


def test_another_geometry_is_refused(fd: int) -> None:
    with pytest.raises(segment.SegmentError):
        GrammarMasks(4, 1000).attach(fd)
    with pytest.raises(segment.SegmentError):
        GrammarMasks(3, 2000).attach(fd)
