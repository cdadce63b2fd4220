"""The token ring: a worker writes what each step sampled, the coordinator reads it. One ring per worker."""

from typing import Any

import numpy.typing as npt

from albireo.config import SchedulerConfig
from albireo.shm import layout
from albireo.shm.ring import RingConsumer, RingGeometry, RingProducer
from albireo.shm.segment import Segment, align


class TokenSlot:
    """Views of one slot: `header` (TOKEN_HEADER[1]), `rows` (TOKEN_ROW[max_num_seqs]) and `logprobs` (LOGPROB), which
    has room for every row and every prompt token of a step. Its pages cost nothing while nobody asks, unless they are
    pinned for a GPU."""

    __slots__ = ("header", "logprobs", "rows")

    def __init__(self, segment: Segment, offset: int, max_rows: int, max_logprobs: int) -> None:
        self.header = segment.array(layout.TOKEN_HEADER, offset, 1)
        offset += layout.TOKEN_HEADER.itemsize
        self.rows = segment.array(layout.TOKEN_ROW, offset, max_rows)
        offset += align(layout.TOKEN_ROW.itemsize * max_rows)
        self.logprobs = segment.array(layout.LOGPROB, offset, max_logprobs)


class TokenRing:
    """Geometry of a token ring for one engine, and its ends."""

    def __init__(self, scheduler: SchedulerConfig) -> None:
        self._max_rows = scheduler.max_num_seqs
        self._max_logprobs = scheduler.max_num_seqs + scheduler.max_num_batched_tokens
        rows_bytes = align(layout.TOKEN_ROW.itemsize * self._max_rows)
        self.rows_offset = layout.TOKEN_HEADER.itemsize
        """Bytes into a slot, as the next."""
        self.logprobs_offset = self.rows_offset + rows_bytes
        slot_bytes = self.logprobs_offset + layout.LOGPROB.itemsize * self._max_logprobs
        # as many as there can be unconfirmed steps, and one: a worker never waits for the coordinator to read
        self.geometry = RingGeometry(scheduler.run_ahead + 2, slot_bytes, 1)
        self._fields = self.geometry.header_fields() | {
            "max_rows": self._max_rows,
            "max_tokens": self._max_logprobs,
        }

    def initialise(self, fd: int) -> None:
        """Writes the header; the supervisor's part."""
        Segment(fd).write_header(layout.KIND_TOKEN_RING, **self._fields)

    def _attach(self, fd: int) -> tuple[Segment, list[TokenSlot], list[npt.NDArray[Any]]]:
        segment = Segment(fd)
        segment.check_header(layout.KIND_TOKEN_RING, **self._fields)
        offsets = [self.geometry.slot_offset(index) for index in range(self.geometry.num_slots)]
        slots = [TokenSlot(segment, offset, self._max_rows, self._max_logprobs) for offset in offsets]
        return segment, slots, [slot.header["sequence"] for slot in slots]

    def writer(self, fd: int) -> "TokenWriter":
        segment, slots, sequences = self._attach(fd)
        return TokenWriter(RingProducer(segment, self.geometry, sequences), slots)

    def reader(self, fd: int) -> "TokenReader":
        segment, slots, sequences = self._attach(fd)
        return TokenReader(RingConsumer(segment, self.geometry, sequences, consumer=0), slots)


class TokenWriter:
    """The worker's end."""

    def __init__(self, ring: RingProducer, slots: list[TokenSlot]) -> None:
        self._ring = ring
        self._slots = slots

    def next_slot(self, ahead: int = 0) -> TokenSlot:
        """The slot to fill, or the one `ahead` steps later."""
        return self._slots[self._ring.next_index(ahead)]

    def publish(self) -> int:
        return self._ring.publish()


class TokenReader:
    """The coordinator's end."""

    def __init__(self, ring: RingConsumer, slots: list[TokenSlot]) -> None:
        self._ring = ring
        self._slots = slots

    def poll(self) -> TokenSlot | None:
        """The next step's results, or None."""
        index = self._ring.poll()
        return None if index is None else self._slots[index]

    def skip(self) -> int:
        """Passes over all results that are there; returns the last one's step."""
        return self._ring.skip()

    def consume(self) -> None:
        self._ring.consume()
