"""The coordinator's copy of the device's request slots: numpy arrays indexed by slot, so that a step's bookkeeping
is a few array operations whatever the batch."""

import numpy as np

from albireo.config import SchedulerConfig
from albireo.coordinator.block_pool import Blocks
from albireo.coordinator.request import Request


class SlotTable:
    """State of running requests. A slot's `generation` grows when its request leaves, so results that were already
    on their way no longer match it."""

    def __init__(self, config: SchedulerConfig) -> None:
        n = config.num_slots
        self.generation = np.zeros(n, np.uint32)
        self.num_tokens = np.zeros(n, np.int32)
        """Confirmed tokens: prompt and output."""
        self.num_computed_tokens = np.zeros(n, np.int32)
        """Tokens whose KV is written by the steps planned so far."""
        self.num_blocks = np.zeros(n, np.int32)
        self.max_total_tokens = np.zeros(n, np.int32)
        self.top_k = np.zeros(n, np.int32)
        self.frontend = np.zeros(n, np.int32)
        self.request_id = np.zeros(n, np.uint64)
        self.block_table = np.zeros((n, config.max_blocks_per_seq), np.int32)
        self.token_ids = np.zeros((n, config.max_model_len + 1), np.int32)
        """Confirmed tokens; pages that no sequence reaches are never touched and cost nothing."""
        self.has_grammar = np.zeros(n, np.bool_)
        self.num_with_grammar = 0
        """Running requests that have one."""
        self.requests: list[Request | None] = [None] * n
        self._free = list(range(n - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_running(self) -> int:
        return len(self.requests) - len(self._free)

    def take(self, request: Request, blocks: Blocks, num_cached_tokens: int) -> int:
        """Gives the request a slot with these blocks, of which the first hold `num_cached_tokens` already."""
        slot = self._free.pop()
        n = request.tokens.size
        self.requests[slot] = request
        self.num_tokens[slot] = n
        self.num_computed_tokens[slot] = num_cached_tokens
        self.max_total_tokens[slot] = request.max_total_tokens
        self.top_k[slot] = request.sampling.top_k
        self.frontend[slot] = request.frontend
        self.request_id[slot] = request.request_id
        self.has_grammar[slot] = request.has_grammar
        self.num_with_grammar += request.has_grammar
        self.token_ids[slot, :n] = request.tokens
        self.num_blocks[slot] = blocks.size
        self.block_table[slot, : blocks.size] = blocks
        request.slot = slot
        return slot

    def give_back(self, slot: int) -> Blocks:
        """Frees the slot and makes its results in flight stale; returns the blocks it held."""
        request = self.requests[slot]
        assert request is not None, "a free slot was given back"
        self.requests[slot] = None
        self.num_with_grammar -= request.has_grammar
        self.generation[slot] += 1
        self._free.append(slot)
        request.slot = -1
        return self.block_table[slot, : self.num_blocks[slot]].copy()

    def blocks(self, slot: int) -> Blocks:
        return self.block_table[slot, : self.num_blocks[slot]]

    def running(self) -> list[Request]:
        """Requests that own a slot, in no order. O(num_slots): for preemption and checks."""
        return [request for request in self.requests if request is not None]
