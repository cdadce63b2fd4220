"""Requests that lose their slot before they have ended: for blocks that others need, or with the devices.

They go back to the queue and on from their tokens. What the device had of a request is copied to the swap space where
that is cheaper, and otherwise computed again.
"""

from collections.abc import Callable

from albireo.coordinator.block_pool import BlockPool
from albireo.coordinator.request import Request, WaitingQueue
from albireo.coordinator.results import Results, SchedulerCounters
from albireo.coordinator.slot_table import SlotTable
from albireo.coordinator.step_log import Preemption
from albireo.coordinator.swap import SwapSpace


class Preemptor:
    """Part of the scheduler, whose state it works on. `leave` takes a request off its slot and frees its blocks."""

    def __init__(
        self,
        slots: SlotTable,
        swap: SwapSpace,
        waiting: WaitingQueue,
        results: Results,
        counters: SchedulerCounters,
        leave: Callable[[Request], None],
        on_requeue: Callable[[Request], None],
        block_size: int,
    ) -> None:
        """`on_requeue` hears of each that goes back to the queue."""
        self._slots = slots
        self._swap = swap
        self._waiting = waiting
        self._results = results
        self._counters = counters
        self._leave = leave
        self._on_requeue = on_requeue
        self._block_size = block_size
        self._preemptions: list[Preemption] = []

    def preempt_last(self, pool: BlockPool, num_needed: int) -> None:
        """Frees the blocks of the request that would start last, and keeps them in the swap space or not. Its tokens in
        flight are still delivered. `num_needed`: blocks that rows wait for."""
        request = max(self._slots.running(), key=self._waiting.order)
        slot = request.slot
        num_tokens = self._take_tokens(request)
        request.num_in_flight = max(0, int(self._slots.num_computed_tokens[slot]) + 1 - num_tokens)
        if request.num_in_flight:
            self._results.expect_late(request)
        # a token that is not computed has no logits
        is_kept = self._swap.is_on and not request.wants_scores and self._keep_blocks(request, pool)
        self._preemptions.append(
            Preemption(
                request.frontend, request.request_id, num_tokens, is_kept, num_needed, pool.num_free, pool.num_blocks
            )
        )
        self._leave(request)
        self._requeue(request)

    def requeue_all(self) -> list[Request]:
        """The devices are gone: every running request loses its slot, and blocks that are nowhere any more. Returns
        them."""
        running = sorted(self._slots.running(), key=self._waiting.order)
        for request in running:
            self._take_tokens(request)
            self._slots.give_back(request.slot)
            self._requeue(request)
        return running

    def take(self) -> list[Preemption]:
        """Who left for others' blocks since the last call."""
        taken, self._preemptions = self._preemptions, []
        return taken

    def _take_tokens(self, request: Request) -> int:
        """From its slot, to be admitted with; returns how many."""
        num_tokens = int(self._slots.num_tokens[request.slot])
        request.tokens = self._slots.token_ids[request.slot, :num_tokens].copy()
        return num_tokens

    def _keep_blocks(self, request: Request, pool: BlockPool) -> bool:
        """Whether the swap space takes them. Those at its head that others hold too stay where they are, and are looked
        up when it comes back."""
        num_full = int(self._slots.num_computed_tokens[request.slot]) // self._block_size
        blocks = self._slots.blocks(request.slot)[:num_full]
        first = pool.num_shared(blocks)
        return self._swap.keep(request, first, blocks[first:])

    def _requeue(self, request: Request) -> None:
        """It has left its slot."""
        self._on_requeue(request)
        request.hashes = []
        self._waiting.push(request)
        self._counters.num_preemptions += 1
