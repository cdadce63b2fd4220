"""Collectives of ranks on one node, through one shared-memory segment and futexes.

Each rank has two buffers. An operation (or a piece of one that is larger than a buffer) is: write the own buffer,
barrier, read the others' buffers. Pieces take the two buffers in turns, so one barrier per piece is enough: a rank
writes a buffer again two pieces later, after a barrier of the piece in between, and every rank came to that one only
when it had read all it wanted of the piece before. A large all-reduce has a second barrier within its piece, between
the sums and their exchange, which changes nothing in this.

The barrier: every rank has an arrival counter on a cache line of its own. Whoever finds after counting that nobody is
missing writes `released` and wakes those that sleep on it, so a rank sleeps and is woken at most once per barrier
however many ranks there are. It looks at `released` a bounded number of times before it sleeps (`SPIN_ROUNDS`), and
only where there are cores to spare. All of an operation happens in one C call (`shm_kernels`, `barrier`), which comes
back when it is done or ten times a second while it waits: then the heartbeat says for whom.

A rank waits for ever; the supervisor decides when that is too long.
"""

import os
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from albireo.gpu_worker.collectives import barrier, shm_kernels
from albireo.gpu_worker.collectives.interface import GroupClosedError
from albireo.gpu_worker.collectives.sums import Element
from albireo.gpu_worker.kernels.launch import Kernel
from albireo.messages import CollectiveKind
from albireo.shm.collective_segment import CollectiveSegment
from albireo.shm.fence import fence

SPIN_ROUNDS: Final = 500
"""Looks at the barrier, each a PAUSE apart: 12 microseconds on Zen 4."""
SHARED_BYTES: Final = 1 << 17
"""All-reduces of so many bytes share the additions out, at the price of a second barrier. No gain at
64 KB, one at 4 MB on 4 ranks (docs/benchmarks/cpu-collectives.md); where in between was not measured."""

_ALL_REDUCE: Final = int(CollectiveKind.ALL_REDUCE)
_ALL_GATHER: Final = int(CollectiveKind.ALL_GATHER)
_ALL_TO_ALL: Final = int(CollectiveKind.ALL_TO_ALL)
_ELEMENTS: Final[dict[torch.dtype, Element]] = {
    torch.bfloat16: np.uint16,
    torch.float32: np.float32,
}


def default_spin_rounds(size: int) -> int:
    """SPIN_ROUNDS where each rank can have a core and one is left for the other processes, else 0."""
    return SPIN_ROUNDS if size < len(os.sched_getaffinity(0)) else 0


class ShmCollectives:
    """One rank's end. `heartbeat` is its WORKER_HEARTBEAT [1]."""

    def __init__(
        self,
        segment_fd: int,
        rank: int,
        size: int,
        heartbeat: npt.NDArray[Any],
        clock_ns: Callable[[], int],
        spin_rounds: int | None = None,
        shared_bytes: int = SHARED_BYTES,
    ) -> None:
        """Maps the segment; waits for nobody. Raises SegmentError where it belongs to another group.

        `shared_bytes`: from here on an all-reduce shares the additions out; the same on every rank."""
        self.rank = rank
        self.size = size
        self.received_bytes = 0
        self._clock_ns = clock_ns
        self._shared_bytes = shared_bytes
        # single fields as memoryviews: 49 ns a store, where the record's field costs 207
        self._beat = heartbeat["heartbeat_ns"].data
        self._count = heartbeat["collective"].data
        self._waiting_for = heartbeat["waiting_for"].data
        self._waiting_in = heartbeat["waiting_in"].data
        self._segment = CollectiveSegment.attach(segment_fd, size)
        state = np.zeros(barrier.STATE_SIZE, np.int64)
        state[barrier.TIMEOUT + 1] = barrier.WAIT_NS
        self._state = state.data
        geometry, address = self._segment.geometry, self._segment.address
        self._places = (
            state.ctypes.data,
            address + geometry.group_offset,
            address + geometry.ranks_offset,
            address + geometry.buffers_offset,
            geometry.buffer_bytes,
            rank,
            size,
            default_spin_rounds(size) if spin_rounds is None else spin_rounds,
        )
        self._move = shm_kernels.move_kernel()
        self._sums = {dtype: shm_kernels.sum_kernel(element) for dtype, element in _ELEMENTS.items()}

    def all_reduce(self, partial: Tensor, residual: Tensor | None = None) -> Tensor:
        """As the interface says; the sum takes the place of `partial`."""
        dtype, num_bytes = partial.dtype, partial.nbytes
        if dtype not in self._sums:
            raise TypeError(f"all-reduce takes float32 and bfloat16, not {dtype}")
        assert partial.is_contiguous(), "collectives take contiguous tensors"
        addend = 0
        if residual is not None:
            assert residual.is_contiguous() and residual.dtype == dtype and residual.shape == partial.shape
            addend = residual.data_ptr()
        address = partial.data_ptr()
        is_shared = int(num_bytes >= self._shared_bytes)
        self._run(self._sums[dtype], _ALL_REDUCE, num_bytes, partial.itemsize, address, address, is_shared, addend)
        self.received_bytes += 2 * (self.size - 1) * num_bytes // self.size
        return partial

    def all_gather(self, part: Tensor, out: Tensor | None = None) -> Tensor:
        assert part.is_contiguous(), "collectives take contiguous tensors"
        if out is None:
            out = torch.empty((self.size, *part.shape), dtype=part.dtype)
        assert out.is_contiguous() and out.nbytes == self.size * part.nbytes
        num_bytes = part.nbytes
        self._run(self._move, _ALL_GATHER, num_bytes, 1, part.data_ptr(), out.data_ptr(), 1, 0)
        self.received_bytes += (self.size - 1) * num_bytes
        return out

    def all_to_all(self, parts: Tensor, out: Tensor | None = None) -> Tensor:
        assert parts.is_contiguous() and parts.shape[0] == self.size, "all-to-all takes contiguous [size, ...]"
        if out is None:
            out = torch.empty_like(parts)
        assert out.is_contiguous() and out.nbytes == parts.nbytes
        num_bytes = parts.nbytes // self.size
        self._run(self._move, _ALL_TO_ALL, num_bytes, 1, parts.data_ptr(), out.data_ptr(), self.size, 0)
        self.received_bytes += (self.size - 1) * num_bytes
        return out

    def close(self) -> None:
        """The others' next operation raises GroupClosedError within a tenth of a second."""
        fence()  # the last arrival is seen before this
        self._segment.ranks["closed"][self.rank] = 1

    def _run(
        self, kernel: Kernel, kind: int, num_bytes: int, item: int, source: int, out: int, variant: int, addend: int
    ) -> None:
        """One operation, from the first piece to the last."""
        self._beat[0] = self._clock_ns()
        self._count[0] += 1
        if num_bytes == 0:
            return
        operation = kind << 56 | item << 52 | num_bytes
        arguments = (*self._places, operation, source, out, num_bytes // item, variant, addend)
        kernel(arguments, 1)
        if self._state[barrier.STATUS]:
            self._wait(kernel, arguments, kind)

    def _wait(self, kernel: Kernel, arguments: tuple[int, ...], kind: int) -> None:
        """Goes on with an operation that has waited for long, until it is done."""
        try:
            while status := self._state[barrier.STATUS]:
                other = self._state[barrier.OTHER]
                if status == barrier.LEFT:
                    raise GroupClosedError(f"rank {other} has left the group; rank {self.rank} waited for it")
                if status == barrier.APART:
                    raise RuntimeError(f"ranks {self.rank} and {other} are in different collectives")
                # `collective` counts operations; the kernel names the rank itself when the last one is just arriving
                self._waiting_for[0] = 1 + other if other != self.rank else 0
                self._waiting_in[0] = kind
                self._beat[0] = self._clock_ns()
                kernel(arguments, 1)
        finally:
            self._waiting_for[0] = self._waiting_in[0] = 0
