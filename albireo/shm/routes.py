"""What frontends tell each other of the requests that they send to replicas: how much work it is, and how the prompts
begin. Each writes its own parts, one for each replica, and reads those of all.

Prompts are told as hashes of their chunks, which only frontends of one server can compute (`frontend.routing`). All of
it is advice: a reader that is too late, or sees a count before what it counts, sends a request to a replica that has
less of it. So there is no fence.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from albireo.shm import layout
from albireo.shm.segment import Segment

LOG_CHUNKS: Final = 8192
"""Hashes that a log holds: of half a million tokens. A reader that is further behind misses the oldest."""
KEY_BYTES: Final = 16

_HASH: Final = np.dtype("<u8")
_PARTS_OFFSET: Final = layout.SEGMENT_HEADER.itemsize + layout.ROUTES_KEY.itemsize


def routes_bytes(num_parts: int) -> int:
    """Size of the routes segment."""
    return _PARTS_OFFSET + num_parts * (layout.ROUTE_PART.itemsize + LOG_CHUNKS * _HASH.itemsize)


def initialise(fd: int, num_parts: int) -> None:
    """Writes the header and a fresh key; the supervisor's part."""
    segment = Segment(fd)
    segment.write_header(layout.KIND_ROUTES, num_consumers=num_parts)
    key = segment.array(layout.ROUTES_KEY, layout.SEGMENT_HEADER.itemsize, 1)
    key["key"] = np.frombuffer(os.urandom(KEY_BYTES), np.uint8)


class Routes:
    """One frontend's view."""

    def __init__(self, fd: int, num_replicas: int, index: int) -> None:
        """`index`: this frontend's. Raises SegmentError when this is another kind of segment."""
        segment = Segment(fd)
        segment.check_header(layout.KIND_ROUTES)
        num_parts = int(segment.header()["num_consumers"][0])
        shape = num_replicas, num_parts // num_replicas
        self.key = segment.array(layout.ROUTES_KEY, layout.SEGMENT_HEADER.itemsize, 1)["key"].tobytes()
        parts = segment.array(layout.ROUTE_PART, _PARTS_OFFSET, num_parts).reshape(shape)
        offset = _PARTS_OFFSET + parts.nbytes
        self._logs = segment.array(_HASH, offset, num_parts * LOG_CHUNKS).reshape(*shape, LOG_CHUNKS)
        self._num_chunks, self._first_chunk = parts["num_chunks"], parts["first_chunk"]
        self._index = index
        self._num_heard = np.maximum(self._first_chunk, self._num_chunks - LOG_CHUNKS)
        """Of each log, int64[num_replicas, num_frontends]."""
        self.loads = [SharedLoad(own, index) for own in parts]
        """By replica."""

    def tell(self, replica: int, chunks: Sequence[int]) -> None:
        """The replica has got these. What others have said must have been heard."""
        count = int(self._num_chunks[replica, self._index])
        chunks = chunks[-LOG_CHUNKS:]
        places = np.arange(count, count + len(chunks)) % LOG_CHUNKS
        self._logs[replica, self._index, places] = chunks
        self._num_chunks[replica, self._index] = self._num_heard[replica, self._index] = count + len(chunks)

    def hear(self) -> Iterator[tuple[int, list[int]]]:
        """What others have sent since the last time, at first all that is still known: replicas and chunks, the oldest
        first."""
        counts = self._num_chunks.copy()
        for replica, frontend in np.argwhere(counts != self._num_heard).tolist():
            end = int(counts[replica, frontend])
            begin = max(int(self._num_heard[replica, frontend]), end - LOG_CHUNKS)
            yield replica, self._logs[replica, frontend, np.arange(begin, end) % LOG_CHUNKS].tolist()
        self._num_heard = counts

    def forget(self, replica: int) -> None:
        """Its cache is empty: a frontend that starts later need not hear what was sent there before."""
        self._first_chunk[replica, self._index] = self._num_chunks[replica, self._index]


def clear_load(fd: int, num_replicas: int, index: int) -> None:
    """The frontend of this index has died, and its requests with it; the supervisor's part. What it had sent where is
    not forgotten: caches have it."""
    for load in Routes(fd, num_replicas, index).loads:
        load.say(0, 0)


class SharedLoad:
    """What one replica has to do: each frontend says its own part, and reads the sum."""

    def __init__(self, parts: npt.NDArray[Any], index: int) -> None:
        """`parts`: ROUTE_PART[num_frontends]."""
        self._num_sequences, self._num_prompt_tokens = parts["num_sequences"], parts["num_prompt_tokens"]
        self._index = index

    def say(self, num_sequences: int, num_prompt_tokens: int) -> None:
        """Of this frontend's requests: how many there are, and the tokens of prompts to be computed for them."""
        self._num_sequences[self._index] = num_sequences
        self._num_prompt_tokens[self._index] = num_prompt_tokens

    @property
    def num_sequences(self) -> int:
        return int(self._num_sequences.sum())

    @property
    def num_prompt_tokens(self) -> int:
        return int(self._num_prompt_tokens.sum())
