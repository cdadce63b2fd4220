"""The swap tier's memory on one rank: KV blocks of preempted requests in host memory."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from albireo.checkpoint.structs import ModelConfig
from albireo.config import SchedulerConfig
from albireo.gpu_worker.kv_cache import KVCache
from albireo.shm.plan_ring import PlanSlot

_Words = npt.NDArray[np.int32]
"""[num_blocks, words in a block]"""


class HostSwapSpace:
    """Blocks beside a KV cache that lies in host memory too: copying costs less than computing, and is all that differs
    from a GPU's (`cuda.swap_space`)."""

    def __init__(
        self, kv: KVCache, model: ModelConfig, dtype: torch.dtype, config: SchedulerConfig, beat: Callable[[], None]
    ) -> None:
        """`model`: this rank's share. Takes its memory at once, lest steps wait for pages; `beat` is called in between,
        and once a layer while blocks are copied."""
        blocks = KVCache(model, config.num_swap_blocks, config.block_size, dtype) if config.num_swap_blocks else None
        self._beat = beat
        self._layers: list[tuple[tuple[_Words, _Words], ...]] = []
        for pages, swapped in zip(kv.layers, blocks.layers, strict=True) if blocks else ():
            for space in swapped:
                space.zero_()
                beat()
            self._layers.append(tuple((_words(c), _words(s)) for c, s in zip(pages, swapped, strict=True)))

    def copy(self, plan: PlanSlot) -> bool:
        """Does the plan's block copies. False where it has none."""
        counts = plan.counts()
        num_outs, num_copies = counts.num_swap_outs, counts.num_swap_outs + counts.num_swap_ins
        if not num_copies:
            return False
        copies: list[tuple[int, int]] = plan.copies[:num_copies].tolist()
        outs, ins = copies[:num_outs], copies[num_outs:]
        for layer in self._layers:
            self._beat()
            # row by row: two to eight times as fast as torch's index_select and index_copy_, and needs no memory
            for cache, space in layer:
                for kv_block, swap_block in outs:
                    space[swap_block] = cache[kv_block]
                for kv_block, swap_block in ins:
                    cache[kv_block] = space[swap_block]
        return True


def _words(pages: torch.Tensor) -> _Words:
    return pages.view(len(pages), -1).view(torch.int32).numpy()
