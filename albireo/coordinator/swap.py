"""The swap tier: KV blocks of preempted requests in host memory, and the copies that bring them there and back.

A plan carries the copies, and a device does them before the step's own work, in the order of the plans. So a block is
free for the next plan as soon as its copy is planned, on either side: what is read was written by an earlier plan, or
by this one's copies out. Every rank copies its own part of a block; the numbers are the same on all of them.

What is kept of a request is its full blocks whose tokens were computed by the steps planned so far. Tokens that were in
flight then come late and make the sequence longer, or end it; where a row waited for its grammar's mask instead, the
sequence stays shorter than planned, and `restore` takes only what lies before its last token.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from albireo.config import SchedulerConfig
from albireo.coordinator.block_pool import BlockPool, Blocks
from albireo.coordinator.request import Request
from albireo.coordinator.swap_costs import SwapCosts
from albireo.shm import layout
from albireo.shm.plan_ring import PlanSlot, max_copies

_NONE: Blocks = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Kept:
    """Blocks [first, first + blocks.size) of a preempted sequence."""

    first: int
    """Blocks before it were others' too, and are found on the device or not at all."""
    blocks: Blocks
    """In the swap space."""


class SwapSpace:
    """Owns the blocks of host memory. Pure state, as the scheduler, whose part it is."""

    def __init__(self, config: SchedulerConfig, costs: SwapCosts | None = None) -> None:
        self.pool = BlockPool(config.num_swap_blocks)
        self.costs = SwapCosts(config.block_size) if costs is None else costs
        self.num_swapped_out = 0
        """Blocks since the start, as `num_swapped_in`."""
        self.num_swapped_in = 0
        self._block_size = config.block_size
        self._max_copies = max_copies(config)
        self._kept: dict[Request, Kept] = {}
        self._outs: dict[Request, npt.NDArray[np.void]] = {}
        """BLOCK_COPY that no plan has yet, by who is kept by them: a plan may come to nothing after a preemption."""
        self._ins: list[npt.NDArray[np.void]] = []
        self._num_pending = 0
        """Copies in both."""

    @property
    def is_on(self) -> bool:
        return self.pool.num_blocks > 0

    @property
    def num_requests(self) -> int:
        """Waiting ones that have blocks here."""
        return len(self._kept)

    def keep(self, request: Request, first: int, blocks: Blocks) -> bool:
        """The request is about to lose its KV `blocks`, full and computed, the first of which is its block number
        `first`. True when they are copied out by the next plan, False when they will have to be computed again."""
        count = blocks.size
        if not count or count > self.pool.num_free or self._num_pending + count > self._max_copies:
            return False
        if not self.costs.prefers_swap(count):
            return False
        kept = Kept(first, self.pool.allocate(count))
        self._kept[request] = kept
        self._outs[request] = _copies(blocks, kept.blocks)
        self._num_pending += count
        return True

    def can_restore(self, request: Request, num_cached: int) -> bool:
        """Whether the next plan has room for the copies that `restore` would plan."""
        return self._num_pending + self._behind(request, num_cached).size <= self._max_copies

    def restore(self, request: Request, num_cached: int, blocks: Blocks) -> int:
        """The request runs again, in KV `blocks`, of which the device has the first `num_cached`. Has those behind them
        copied in, as far as they are here; returns how many. None of its blocks is here any more."""
        swapped = self._behind(request, num_cached)
        if swapped.size:
            self._ins.append(_copies(blocks[num_cached : num_cached + swapped.size], swapped))
            self._num_pending += swapped.size
        kept = self._kept.pop(request, None)
        if kept is not None:
            self.pool.release(kept.blocks)  # a later plan's, which the device runs later
        return swapped.size

    def drop(self, request: Request) -> None:
        """The request has ended."""
        kept = self._kept.pop(request, None)
        if kept is not None:
            self.pool.release(kept.blocks)
            # or somebody else's copy to the same block could stand in the same plan
            self._num_pending -= self._outs.pop(request, np.empty(0, layout.BLOCK_COPY)).size

    def lose_all(self) -> None:
        """The workers' memory is gone, and what was planned with it: everybody is computed again."""
        for request in list(self._kept):
            self.drop(request)
        self._outs.clear()
        self._ins.clear()
        self._num_pending = 0
        self.costs.forget_planned()

    def write(self, plan: PlanSlot) -> None:
        """Enters all copies into the plan, which will be published."""
        header = plan.header
        header["num_swap_outs"] = header["num_swap_ins"] = 0
        if not self._num_pending:
            return
        outs, ins = sum(each.size for each in self._outs.values()), sum(each.size for each in self._ins)
        header["num_swap_outs"], header["num_swap_ins"] = outs, ins
        plan.copies[: outs + ins] = np.concatenate([*self._outs.values(), *self._ins])
        self._outs.clear()
        self._ins.clear()
        self._num_pending = 0
        self.num_swapped_out += outs
        self.num_swapped_in += ins

    def _behind(self, request: Request, num_cached: int) -> Blocks:
        """What is here of its blocks from number `num_cached` on; at least one token is left to compute."""
        kept = self._kept.get(request)
        if kept is None or kept.first > num_cached:
            return _NONE
        end = (request.tokens.size - 1) // self._block_size
        return kept.blocks[num_cached - kept.first : max(end - kept.first, 0)]

    def check_integrity(self) -> None:
        """For tests: the blocks in use are those that are kept."""
        self.pool.check_integrity()
        kept = np.concatenate([_NONE, *(kept.blocks for kept in self._kept.values())])
        assert np.unique(kept).size == kept.size == self.pool.num_used
        assert set(self._outs) <= set(self._kept)
        assert not self._ins, "copies in were planned, and the plan came to nothing"
        assert self._num_pending == sum(copies.size for copies in self._outs.values())


def _copies(kv_blocks: Blocks, swap_blocks: Blocks) -> npt.NDArray[np.void]:
    copies = np.empty(kv_blocks.size, layout.BLOCK_COPY)
    copies["kv_block"], copies["swap_block"] = kv_blocks, swap_blocks
    return copies
