"""The prefix cache: KV blocks of one sequence that others find by their content.

Blocks have content addresses: a chain of keyed hashes, so that equal prefixes, and only they, meet. The blocks
themselves, and which of them are findable, are the pool's (`block_pool`).
"""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from albireo.config import SchedulerConfig
from albireo.coordinator.block_pool import BlockPool
from albireo.coordinator.request import Request
from albireo.coordinator.slot_table import SlotTable

HASH_BYTES = 16


class BlockHasher:
    """Hashes full blocks of tokens. The key is random per engine: a client cannot construct a collision, nor learn
    from hashes what others sent (security.md, prefix cache as a side channel)."""

    def __init__(self, key: bytes, block_size: int) -> None:
        self._key = key
        self._block_bytes = 4 * block_size

    def root(self, cache_salt: str) -> bytes:
        """What a sequence's first block is chained to: requests of different salts share nothing."""
        return blake2b(cache_salt.encode(), key=self._key, digest_size=HASH_BYTES).digest()

    def extend(self, parent: bytes, tokens: npt.NDArray[np.int32]) -> list[bytes]:
        """Hashes of the full blocks of `tokens` (int32, starting at a block boundary) behind `parent`."""
        data = tokens.tobytes()
        hashes = []
        for start in range(0, len(data) - self._block_bytes + 1, self._block_bytes):
            content = parent + data[start : start + self._block_bytes]
            parent = blake2b(content, key=self._key, digest_size=HASH_BYTES).digest()
            hashes.append(parent)
        return hashes


class PrefixCache:
    """Finds and registers blocks of requests. Where it is turned off, samples of one prompt share its blocks, and
    nobody else does."""

    def __init__(self, config: SchedulerConfig, hash_key: bytes, slots: SlotTable, pool: BlockPool) -> None:
        self.pool = pool
        """Another's when devices have lost all blocks."""
        self._is_on = config.enable_prefix_caching
        self._block_size = config.block_size
        self._hasher = BlockHasher(hash_key, config.block_size)
        self._slots = slots

    def find(self, request: Request) -> list[int]:
        """Blocks that already hold the head of its tokens; at least one token is left to compute."""
        if not self._shares_blocks(request):
            return []
        if not request.hashes:
            request.hashes = self._hasher.extend(self._root(request), request.tokens)
        if request.wants_scores:  # a token that is not computed has no logits
            return []
        return self.pool.lookup(request.hashes[: (request.tokens.size - 1) // self._block_size])

    def register(self, request: Request, first: int, end: int) -> None:
        """Makes blocks [first, end) of a request that runs findable by their content."""
        if self._shares_blocks(request):
            for index in range(first, end):
                self.pool.register(int(self._slots.block_table[request.slot, index]), request.hashes[index])

    def register_output(self, request: Request) -> None:
        """Of a request that leaves: output blocks are not hashed as they fill, so that nothing is added to a decode
        step, and who comes back with this text as the head of a prompt comes after its end."""
        if not self._is_on:
            return
        slot, slots, block_size = request.slot, self._slots, self._block_size
        num_written = min(int(slots.num_computed_tokens[slot]), int(slots.num_tokens[slot]) - 1)
        first, end = len(request.hashes), num_written // block_size
        if end > first:
            parent = request.hashes[-1] if request.hashes else self._root(request)
            request.hashes += self._hasher.extend(parent, slots.token_ids[slot, first * block_size : end * block_size])
            self.register(request, first, end)

    def _shares_blocks(self, request: Request) -> bool:
        return self._is_on or request.sample_group != 0

    def _root(self, request: Request) -> bytes:
        if self._is_on:
            return self._hasher.root(request.cache_salt)
        return self._hasher.root(f"{request.frontend}/{request.sample_group}")
