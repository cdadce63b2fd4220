"""The swap tier's memory beside a GPU: pinned, and copied to and from in the stream of steps.

In that stream a copy out lies behind all that was written before and before all that is written later, so that blocks
may change hands at once; a stream of its own would spare steps the wait, and need a fence for each block that is given
away. The copies are launched before the step and are no part of a captured one.
"""

from collections.abc import Callable

import numpy as np
import torch
import triton
from torch import Tensor

from albireo.checkpoint.structs import ModelConfig
from albireo.config import SchedulerConfig
from albireo.gpu_worker.cuda.kernels.copy_blocks import LANES, copy_blocks
from albireo.gpu_worker.cuda.runtime import Runtime
from albireo.gpu_worker.cuda.step_buffers import Staging
from albireo.gpu_worker.kv_cache import KVCache
from albireo.shm.plan_ring import PlanCounts, PlanSlot, max_copies

_OUT, _IN = 0, 1
"""Which column of a BLOCK_COPY is the source."""


class CudaSwapSpace:
    """Blocks for one KV cache."""

    def __init__(
        self, kv: KVCache, model: ModelConfig, config: SchedulerConfig, runtime: Runtime, beat: Callable[[], None]
    ) -> None:
        """`model`: this rank's share. Pinning takes the memory at once; `beat` is called in between."""
        dtype = kv.layers[0][0].dtype
        blocks = KVCache(model, config.num_swap_blocks, config.block_size, dtype)
        self._pairs: list[tuple[Tensor, Tensor]] = []
        for pages, swapped in zip(kv.layers, blocks.layers, strict=True):
            for cache, space in zip(pages, swapped, strict=True):
                runtime.pin(space.view(torch.uint8).flatten().numpy())
                self._pairs.append((_words(cache), _words(space)))
                beat()
        self._copies = Staging(config.run_ahead + 2, 2 * max_copies(config), runtime)
        # the kernel is compiled now, not in a step; nothing lies in these blocks yet
        self._launch(self._copies.send(0, np.zeros(2, np.int32)).view(1, 2), _OUT)
        self._launch(self._copies.send(0, np.zeros(2, np.int32)).view(1, 2), _IN)

    def copy(self, plan: PlanSlot, counts: PlanCounts) -> None:
        """Launches the plan's block copies, of which there is at least one."""
        num_outs, num_copies = counts.num_swap_outs, counts.num_swap_outs + counts.num_swap_ins
        sent = self._copies.send(counts.sequence, plan.copies[:num_copies].view(np.int32)).view(num_copies, 2)
        self._launch(sent[:num_outs], _OUT)
        self._launch(sent[num_outs:], _IN)

    def _launch(self, copies: Tensor, source: int) -> None:
        if not len(copies):
            return
        for cache, space in self._pairs:
            block_words = cache.shape[1]
            pair = (cache, space) if source == _OUT else (space, cache)
            copy_blocks[(len(copies), triton.cdiv(block_words, int(LANES.value)))](
                *pair, copies, FROM=source, BLOCK_WORDS=block_words
            )


def _words(pages: Tensor) -> Tensor:
    """int32 [num_blocks, words in a block], the same memory."""
    return pages.view(len(pages), -1).view(torch.int32)
