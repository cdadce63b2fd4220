import numpy as np
import pytest

from albireo.coordinator.block_pool import BlockPool
from albireo.coordinator.prefix_cache import BlockHasher


def test_blocks_come_back_when_their_last_reference_goes() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    pool.share(blocks[:2].tolist())
    pool.release(blocks)
    assert pool.num_used == 2
    pool.release(blocks[:2])
    assert pool.num_used == 0
    pool.check_integrity()


def test_a_freed_block_with_a_hash_is_found_until_it_is_needed_for_something_else() -> None:
    pool = BlockPool(2)
    block = pool.allocate(1)
    pool.register(int(block[0]), b"hash")
    pool.release(block)
    assert pool.lookup([b"hash"]) == block.tolist()
    pool.allocate(1)
    assert pool.lookup([b"hash"]) == block.tolist(), "a block without content goes first"
    pool.allocate(1)
    assert pool.lookup([b"hash"]) == []
    pool.check_integrity()


def test_the_tail_of_a_sequence_is_evicted_before_its_head() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    hashes = [b"0", b"1", b"2"]
    for block, block_hash in zip(blocks.tolist(), hashes, strict=True):
        pool.register(block, block_hash)
    pool.release(blocks)
    pool.allocate(1)
    assert pool.lookup(hashes) == blocks[:2].tolist()
    pool.check_integrity()


def test_the_first_block_of_equal_content_stays_the_one_that_is_found() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2).tolist()
    pool.register(first, b"hash")
    pool.register(second, b"hash")
    assert pool.lookup([b"hash"]) == [first]
    pool.check_integrity()


def test_allocating_more_than_is_free_is_our_own_bug() -> None:
    with pytest.raises(AssertionError):
        BlockPool(2).allocate(3)


def test_a_block_hash_depends_on_every_token_before_it_and_on_the_salt_and_the_key() -> None:
    tokens = np.arange(12, dtype=np.int32)
    hasher = BlockHasher(b"key", block_size=4)
    base = hasher.extend(hasher.root(""), tokens)
    changed = tokens.copy()
    changed[1] = 99
    assert len(base) == 3
    assert not set(base) & set(hasher.extend(hasher.root(""), changed))
    assert not set(base) & set(hasher.extend(hasher.root("salt"), tokens))
    assert not set(base) & set(BlockHasher(b"other", 4).extend(hasher.root(""), tokens))
    assert hasher.extend(base[0], tokens[4:]) == base[1:], "a chain can be taken up anywhere"


def test_tokens_of_a_part_filled_block_have_no_hash() -> None:
    hasher = BlockHasher(b"key", block_size=4)
    assert hasher.extend(hasher.root(""), np.arange(3, dtype=np.int32)) == []
