"""The plan ring: the coordinator writes step plans ahead of time, every worker reads all of them.

A slot is a PLAN_HEADER and the arrays that it counts, each sized for the worst step, so a plan never allocates.
"""

import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from albireo.config import SchedulerConfig
from albireo.limits import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS_ENTRIES, MAX_LOGIT_BIAS
from albireo.shm import layout
from albireo.shm.ring import RingConsumer, RingGeometry, RingProducer
from albireo.shm.segment import Segment, align


def max_appends(scheduler: SchedulerConfig) -> int:
    """Most block-table entries in one plan: a new block for every row, and room for at least two longest prompts
    to be admitted. A step that has no room for more admits the rest in the next."""
    return scheduler.max_num_seqs + 2 * scheduler.max_blocks_per_seq


def max_extras(scheduler: SchedulerConfig) -> int:
    """Most int32 of `extras` in one plan: two requests that use all of it (every token of the longest sequence under
    penalties, all bias and bad words), or many that use a little. Who finds no room is admitted in the next step."""
    return 2 * (2 * scheduler.max_model_len + 2 * MAX_LOGIT_BIAS + MAX_BAD_WORDS_ENTRIES + MAX_BAD_WORD_TOKENS)


def max_copies(scheduler: SchedulerConfig) -> int:
    """Most KV blocks that one plan copies out and in: two sequences of the longest kind. A request whose blocks find no
    room is computed again, or comes back in a later step."""
    return 2 * scheduler.max_blocks_per_seq if scheduler.num_swap_blocks else 0


class PlanCounts(NamedTuple):
    """PLAN_HEADER's fields as plain integers."""

    sequence: int
    num_rows: int
    rows_changed: int
    num_chunks: int
    num_chunk_tokens: int
    num_admissions: int
    num_appends: int
    num_extras: int
    sampling_slice: int
    num_swap_outs: int
    num_swap_ins: int


_unpack_counts = struct.Struct("<Q8x10i").unpack_from


def plan_arrays(scheduler: SchedulerConfig) -> dict[str, tuple[np.dtype[Any], int]]:
    """What a slot holds, in this order, each aligned: names, records, and how many there is room for."""
    int32 = np.dtype("<i4")
    return {
        "header": (layout.PLAN_HEADER, 1),
        # a GPU gets a steady step's plan in one copy: these three, and as many appends as there are
        "rows": (int32, scheduler.max_num_seqs),
        "appends": (layout.BLOCK_APPEND, max_appends(scheduler)),
        "admissions": (layout.ADMISSION, scheduler.max_num_seqs),
        "chunks": (layout.CHUNK, scheduler.max_num_seqs),
        "chunk_tokens": (int32, scheduler.max_num_batched_tokens),
        "extras": (int32, max_extras(scheduler)),
        "copies": (layout.BLOCK_COPY, max_copies(scheduler)),
    }


class PlanSlot:
    """Views of one slot. The header counts how much of each array is filled."""

    __slots__ = (
        "_header_bytes", "admissions", "appends", "chunk_tokens", "chunks", "copies", "extras", "header", "rows",
    )  # fmt: skip

    header: npt.NDArray[Any]
    rows: npt.NDArray[np.int32]
    chunks: npt.NDArray[Any]
    admissions: npt.NDArray[Any]
    appends: npt.NDArray[Any]
    chunk_tokens: npt.NDArray[np.int32]
    extras: npt.NDArray[np.int32]
    copies: npt.NDArray[Any]

    def __init__(self, segment: Segment, offset: int, scheduler: SchedulerConfig) -> None:
        for name, (dtype, count) in plan_arrays(scheduler).items():
            setattr(self, name, segment.array(dtype, offset, count))
            offset += align(dtype.itemsize * count)
        self._header_bytes = self.header.data.cast("B")

    def counts(self) -> PlanCounts:
        """The header at once, for who reads it between two steps: a tenth of the time of reading field by field."""
        return PlanCounts._make(_unpack_counts(self._header_bytes))


class PlanRing:
    """Geometry of the plan ring for one engine, and its ends."""

    def __init__(self, scheduler: SchedulerConfig, num_workers: int) -> None:
        self._scheduler = scheduler
        self.array_offsets: dict[str, int] = {}
        """Bytes into a slot."""
        slot_bytes = 0
        for name, (dtype, count) in plan_arrays(scheduler).items():
            self.array_offsets[name] = slot_bytes
            slot_bytes += align(dtype.itemsize * count)
        # one step executing, run_ahead planned, one that is being filled
        self.geometry = RingGeometry(scheduler.run_ahead + 2, slot_bytes, num_workers)
        self._fields = self.geometry.header_fields() | {
            "max_rows": scheduler.max_num_seqs,
            "max_tokens": scheduler.max_num_batched_tokens,
            "max_appends": max_appends(scheduler),
        }

    def initialise(self, fd: int) -> None:
        """Writes the header; the supervisor's part."""
        Segment(fd).write_header(layout.KIND_PLAN_RING, **self._fields)

    def _attach(self, fd: int) -> tuple[Segment, list[PlanSlot], list[npt.NDArray[Any]]]:
        segment = Segment(fd)
        segment.check_header(layout.KIND_PLAN_RING, **self._fields)
        offsets = [self.geometry.slot_offset(index) for index in range(self.geometry.num_slots)]
        slots = [PlanSlot(segment, offset, self._scheduler) for offset in offsets]
        return segment, slots, [slot.header["sequence"] for slot in slots]

    def writer(self, fd: int) -> "PlanWriter":
        segment, slots, sequences = self._attach(fd)
        return PlanWriter(RingProducer(segment, self.geometry, sequences), slots)

    def reader(self, fd: int, consumer: int) -> "PlanReader":
        segment, slots, sequences = self._attach(fd)
        return PlanReader(RingConsumer(segment, self.geometry, sequences, consumer), slots)


class PlanWriter:
    """The coordinator's end."""

    def __init__(self, ring: RingProducer, slots: list[PlanSlot]) -> None:
        self._ring = ring
        self._slots = slots

    @property
    def next_step(self) -> int:
        """Number of the step that the next published plan describes."""
        return self._ring.next_sequence

    @property
    def is_consumed(self) -> bool:
        """Every worker is done with every plan."""
        return self._ring.is_consumed

    def has_room(self) -> bool:
        return self._ring.has_room()

    def next_slot(self) -> PlanSlot:
        return self._slots[self._ring.next_index()]

    def publish(self) -> int:
        return self._ring.publish()


class PlanReader:
    """A worker's end."""

    def __init__(self, ring: RingConsumer, slots: list[PlanSlot]) -> None:
        self._ring = ring
        self._slots = slots

    def poll(self) -> PlanSlot | None:
        """The next plan, or None when the coordinator has published no other."""
        index = self._ring.poll()
        return None if index is None else self._slots[index]

    def consume(self, unfinished: int = 0) -> None:
        """The device has used every plan read so far but the newest `unfinished`."""
        self._ring.consume(unfinished)
