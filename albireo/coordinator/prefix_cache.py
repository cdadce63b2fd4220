"""Content addresses of KV blocks: a chain of keyed hashes, so that equal prefixes, and only they, meet."""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

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
