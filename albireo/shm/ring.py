"""A ring of fixed-size slots in shared memory: one producer, several consumers, no locks.

Sequence numbers start at 1; slot `sequence % num_slots` holds it. The sequence numbers are the truth: a doorbell may
be lost, merged or late, and whoever is woken, for whatever reason, only looks at the cursors.

    producer   fill the slot; fence; slot's sequence; published      (only while every consumer is < num_slots behind)
    consumer   published; fence; slot's sequence must match; read; ...; fence; consumed
"""

from typing import Any

import numpy.typing as npt

from albireo.shm import layout
from albireo.shm.fence import fence
from albireo.shm.segment import Segment, SegmentError, align


class RingGeometry:
    """Where things lie in a ring's segment: header, published cursor, consumed cursors, slots."""

    def __init__(self, num_slots: int, slot_bytes: int, num_consumers: int) -> None:
        self.num_slots = num_slots
        self.slot_bytes = align(slot_bytes)
        self.num_consumers = num_consumers
        self.published_offset = layout.SEGMENT_HEADER.itemsize
        self.consumed_offset = self.published_offset + layout.CURSOR.itemsize
        self.slots_offset = self.consumed_offset + num_consumers * layout.CURSOR.itemsize
        self.size = self.slots_offset + num_slots * self.slot_bytes

    def consumed(self, consumer: int) -> int:
        """Offset of a consumer's cursor."""
        return self.consumed_offset + consumer * layout.CURSOR.itemsize

    def slot_offset(self, index: int) -> int:
        return self.slots_offset + index * self.slot_bytes

    def skip(self, fd: int) -> int:
        """What is published and not consumed is nobody's any more; returns the last sequence number."""
        sequence: int = cursor(Segment(fd), self.published_offset)[0]
        self.restart(fd, sequence)
        return sequence

    def restart(self, fd: int, sequence: int) -> None:
        """An empty ring that goes on behind this sequence number. No end may be attached."""
        segment = Segment(fd)
        cursor(segment, self.published_offset)[0] = sequence
        for consumer in range(self.num_consumers):
            cursor(segment, self.consumed(consumer))[0] = sequence

    def header_fields(self) -> dict[str, int]:
        return {"num_slots": self.num_slots, "slot_bytes": self.slot_bytes, "num_consumers": self.num_consumers}


def cursor(segment: Segment, offset: int) -> memoryview:
    """One uint64, to be read and written as `[0]`: a load or store of 40 ns, where numpy takes 100 and more."""
    return segment.data.data[offset : offset + 8].cast("Q")


class RingProducer:
    """The writing end. `sequences[i]` is slot i's sequence field."""

    def __init__(self, segment: Segment, geometry: RingGeometry, sequences: list[npt.NDArray[Any]]) -> None:
        self._published = cursor(segment, geometry.published_offset)
        self._consumed = [cursor(segment, geometry.consumed(index)) for index in range(geometry.num_consumers)]
        self._sequences = sequences
        self._num_slots = geometry.num_slots
        self._next = self._published[0] + 1

    @property
    def next_sequence(self) -> int:
        return self._next

    def has_room(self, ahead: int = 0) -> bool:
        """True when every consumer's device is done with the slot that comes next, or `ahead` slots later."""
        return self._next + ahead - min(consumed[0] for consumed in self._consumed) <= self._num_slots

    def next_index(self, ahead: int = 0) -> int:
        """Index of the slot to fill, or of the one `ahead` slots later, to be published in its turn. Raises
        SegmentError when a consumer still holds it."""
        if not self.has_room(ahead):
            raise SegmentError("the ring is full: a slot was asked for before its consumers gave it back")
        return (self._next + ahead) % self._num_slots

    @property
    def is_consumed(self) -> bool:
        """Every consumer is done with all that was published."""
        return min(consumed[0] for consumed in self._consumed) == self._published[0]

    def publish(self) -> int:
        """Makes the filled slot visible; returns its sequence number."""
        sequence = self._next
        fence()
        self._sequences[sequence % self._num_slots][0] = sequence
        fence()
        self._published[0] = sequence
        self._next = sequence + 1
        return sequence


class RingConsumer:
    """One reading end. Reading and consuming are apart: a device may work on a slot long after Python read it."""

    def __init__(
        self, segment: Segment, geometry: RingGeometry, sequences: list[npt.NDArray[Any]], consumer: int
    ) -> None:
        self._published = cursor(segment, geometry.published_offset)
        self._consumed = cursor(segment, geometry.consumed(consumer))
        self._sequences = sequences
        self._num_slots = geometry.num_slots
        self._next = self._consumed[0] + 1

    def poll(self) -> int | None:
        """Index of the next unread slot, or None. The slot stays valid until `consume` passes it."""
        if self._published[0] < self._next:
            return None
        fence()
        index = self._next % self._num_slots
        sequence = int(self._sequences[index][0])
        if sequence != self._next:
            raise SegmentError(f"ring slot {index} holds sequence {sequence}, expected {self._next}")
        self._next += 1
        return index

    def skip(self) -> int:
        """Passes over all that is published; returns its last sequence number."""
        self._next = self._published[0] + 1
        self.consume()
        return self._next - 1

    def consume(self, unfinished: int = 0) -> None:
        """The device is done with every slot read so far but the newest `unfinished`; the producer may fill them
        again."""
        fence()
        self._consumed[0] = self._next - 1 - unfinished
