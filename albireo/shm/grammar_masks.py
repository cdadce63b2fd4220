"""The grammar masks: which tokens each constrained sequence may sample next, one bit each.

One place per request slot. The grammar process writes the mask for a position as soon as the token before it is known;
the device reads it between the forward pass and sampling, so that nothing but the sampling of that row ever waits for
it. A mask that is not there yet is no reason to wait either: the row samples nothing in that step (`messages.WAITED`)
and is computed again in the next one.

A place is written over only when its slot's last token is confirmed by every rank, or when the slot has changed hands.
A slot that has changed hands is bound only when every earlier step is confirmed (`coordinator.grammars`), so that no
step in flight reads it for its former owner; the CPU's reader relies on that, the GPU's looks at the tag twice.
"""

import numpy as np
import numpy.typing as npt

from albireo.shm import layout
from albireo.shm.fence import fence
from albireo.shm.segment import Segment, align


def mask_tag(generation: int, position: int) -> int:
    """The tag of the mask for the token at `position` of the sequence that owns its slot as `generation`."""
    return generation << 32 | position


def mask_words(vocab_size: int) -> int:
    """int32 words of one mask. Token i is bit i % 32 of word i // 32, the order that llguidance writes."""
    return -(-vocab_size // 32)


class GrammarMasks:
    """Geometry of the segment for one engine, and its ends."""

    def __init__(self, num_slots: int, vocab_size: int) -> None:
        self._num_slots = num_slots
        self._num_words = mask_words(vocab_size)
        self.tags_offset = align(layout.SEGMENT_HEADER.itemsize)
        """Bytes into the segment, as the next."""
        self.masks_offset = self.tags_offset + align(layout.GRAMMAR_TAG.itemsize * num_slots)
        self.row_bytes = align(4 * self._num_words)
        """From one slot's mask to the next."""
        self.size = self.masks_offset + self.row_bytes * num_slots
        self._fields = {"num_slots": num_slots, "slot_bytes": self.row_bytes}

    def initialise(self, fd: int) -> None:
        """Writes the header; the supervisor's part."""
        Segment(fd).write_header(layout.KIND_GRAMMAR, **self._fields)

    def attach(self, fd: int) -> "MaskTable":
        segment = Segment(fd)
        segment.check_header(layout.KIND_GRAMMAR, **self._fields)
        tags = segment.array(layout.GRAMMAR_TAG, self.tags_offset, self._num_slots)["tag"]
        words = segment.array(np.dtype("<i4"), self.masks_offset, self._num_slots * self.row_bytes // 4)
        return MaskTable(segment, tags, words.reshape(self._num_slots, -1)[:, : self._num_words])


class MaskTable:
    """A mapped segment's arrays. `publish` and `clear` are the grammar process's alone."""

    def __init__(self, segment: Segment, tags: npt.NDArray[np.uint64], masks: npt.NDArray[np.int32]) -> None:
        self.segment = segment
        self.tags = tags
        """uint64 [num_slots]"""
        self.masks = masks
        """int32 [num_slots, mask_words]"""

    def clear(self, slot: int) -> None:
        """No mask is there from now on; after this the slot's words may be written."""
        self.tags[slot] = 0
        fence()

    def publish(self, slot: int, tag: int) -> None:
        """The slot's words, written since `clear`, are the mask of `tag`."""
        fence()
        self.tags[slot] = tag
