"""KV blocks: which are free, how often the others are referenced, and which can be found again by their content.

Block ids mean the same block on every rank. A block whose last reference is gone is free at once: all KV writes of
a rank go through one in-order stream, so a later plan may give it away while earlier plans still write to it.
A free block with a hash keeps its content and can be revived by a prefix hit until it is needed for something else.
"""

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

Blocks = npt.NDArray[np.int32]


class BlockPool:
    """Reference-counted blocks with an LRU of cached free ones. Used by the scheduler alone."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._ref_counts = np.zeros(num_blocks, np.int32)
        self._stack = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)
        """Free blocks without a hash, in its first `_stack_size` entries."""
        self._stack_size = num_blocks
        self._cached_free: OrderedDict[int, None] = OrderedDict()
        """Free blocks with a hash, least recently freed first."""
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._has_hash = np.zeros(num_blocks, np.bool_)

    @property
    def num_free(self) -> int:
        return self._stack_size + len(self._cached_free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def num_cached(self) -> int:
        """Blocks that a prefix hit can find, in use or not."""
        return len(self._block_of)

    def allocate(self, count: int) -> Blocks:
        """`count` blocks with one reference each, int32[count]; the caller has checked `num_free`."""
        assert count <= self.num_free, "blocks allocated beyond the pool"
        from_stack = min(count, self._stack_size)
        self._stack_size -= from_stack
        blocks = self._stack[self._stack_size : self._stack_size + from_stack].copy()
        if count > from_stack:
            evicted = [self._evict() for _ in range(count - from_stack)]
            blocks = np.concatenate([blocks, np.array(evicted, np.int32)])
        self._ref_counts[blocks] = 1
        return blocks

    def _evict(self) -> int:
        block, _ = self._cached_free.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        self._has_hash[block] = False
        return block

    def lookup(self, hashes: list[bytes]) -> list[int]:
        """Blocks of the longest prefix of `hashes` that is cached. Takes no reference."""
        blocks = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def count_free(self, blocks: list[int]) -> int:
        """How many of `blocks` are free, that is: would leave the free ones if shared."""
        return sum(block in self._cached_free for block in blocks)

    def num_shared(self, blocks: Blocks) -> int:
        """How many at the head of `blocks`, a sequence's in order, others hold too."""
        is_shared = self._ref_counts[blocks] > 1
        return blocks.size if is_shared.all() else int(is_shared.argmin())

    def share(self, blocks: list[int]) -> None:
        """Takes a reference to each of `blocks`, which `lookup` found."""
        for block in blocks:
            self._cached_free.pop(block, None)
        self._ref_counts[blocks] += 1

    def register(self, block: int, block_hash: bytes) -> None:
        """Makes a referenced block findable. The first block of equal content stays the one that is found."""
        if block_hash not in self._block_of and not self._has_hash[block]:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash
            self._has_hash[block] = True

    def release(self, blocks: Blocks) -> None:
        """Drops one reference to each of `blocks`, a sequence's in order: its tail is evicted before its head."""
        self._ref_counts[blocks] -= 1
        unused = blocks[self._ref_counts[blocks] == 0]
        has_hash = self._has_hash[unused]
        plain = unused[~has_hash]
        self._stack[self._stack_size : self._stack_size + plain.size] = plain
        self._stack_size += plain.size
        for block in reversed(unused[has_hash].tolist()):
            self._cached_free[block] = None

    def check_integrity(self) -> None:
        """Every block is in exactly one place. For tests; O(num_blocks)."""
        stack = self._stack[: self._stack_size].tolist()
        free = stack + list(self._cached_free)
        assert len(set(free)) == len(free), "a block is free twice"
        assert (self._ref_counts >= 0).all(), "a reference count is negative"
        assert set(free) == set(np.flatnonzero(self._ref_counts == 0).tolist()), "free blocks and counts disagree"
        assert not self._has_hash[stack].any(), "a hashed block is on the plain stack"
        assert set(self._hash_of) == set(np.flatnonzero(self._has_hash).tolist())
        assert {block: block_hash for block_hash, block in self._block_of.items()} == self._hash_of
