"""Grammar masks on the GPU: read in place from shared memory when a step samples, without anybody waiting for them."""

from typing import Final, NamedTuple

import torch
import triton
from torch import Tensor

from albireo.gpu_worker.cuda.kernels.take_masks import LANES, take_masks
from albireo.gpu_worker.cuda.runtime import Runtime
from albireo.shm.grammar_masks import GrammarMasks

MOST_WORDS: Final = 8192
"""Words of a mask that are on their way over the bus at once: all of them up to 262,144 tokens."""


class SharedMasks(NamedTuple):
    """`shm.grammar_masks` as kernels take it: memory of the host, which the device reads in place."""

    tags: Tensor
    """int64 [num_slots]"""
    words: Tensor
    """int32 [num_slots, words], rows 64 bytes aligned."""


def map_masks(runtime: Runtime, fd: int, num_slots: int, vocab_size: int) -> SharedMasks | None:
    """Pins the segment for the device. None where there is no segment: no request has a grammar."""
    if fd < 0:
        return None
    table = GrammarMasks(num_slots, vocab_size).attach(fd)
    runtime.pin(table.segment.data)
    return SharedMasks(torch.from_numpy(table.tags).view(torch.int64), torch.from_numpy(table.masks))


class RowMasks:
    """The masks of one batch's rows, in fixed places, as captured steps need them.

    allowed  int32 [max_rows, words] on the device: token i is bit i % 32 of word i // 32; valid in rows that have a
             grammar and that `take` has not left out
    """

    def __init__(self, shared: SharedMasks | None, admissions: Tensor, max_rows: int, device: torch.device) -> None:
        stride = 1 if shared is None else shared.words.stride(0)
        self._shared = shared
        self._admissions = admissions
        self._asked = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self.allowed = torch.zeros(max_rows, stride, dtype=torch.int32, device=device)

    @property
    def are_served(self) -> bool:
        """Whether any request can have a grammar."""
        return self._shared is not None

    def take(self, slots: Tensor, alive: Tensor, positions: Tensor) -> Tensor:
        """`slots` int32 [n], with WAITED for rows whose mask is not there; the other rows' masks are in `allowed`.
        Valid until the next call."""
        assert len(slots) <= len(self.allowed)
        if self._shared is None:
            return slots
        asked, stride = self._asked[: len(slots)], self.allowed.stride(0)
        take_masks[(len(slots),)](
            slots, alive, positions, self._admissions, self._shared.tags, self._shared.words, asked, self.allowed,
            STRIDE=stride, BLOCK=min(MOST_WORDS, triton.next_power_of_2(stride)), ON_GPU=slots.is_cuda,
            num_warps=LANES.value // 32,
        )  # fmt: skip
        return asked
