"""Which replica a request goes to: the one that has least to do, what it need not compute again counted in.

Work is counted in prompt tokens: those that a replica has yet to compute, and a constant for each of its sequences. A
request adds the tokens of its prompt that the replica does not have in its cache. So requests with the same beginning
meet at one replica, until another has less to do by more than what computing the beginning again would be.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import count
from typing import Final, NamedTuple, Protocol

from albireo.config import RoutingPolicy
from albireo.shm.routes import Routes

CHUNK_TOKENS: Final = 64
"""Beginnings of prompts are known in multiples of this."""
SEQUENCE_WORK: Final = 128
"""What a sequence is to its replica, in prompt tokens: it has a place in every step for as long as it runs."""

_CHUNK_BYTES: Final = 4 * CHUNK_TOKENS
_HASH_BYTES: Final = 8


class Load(Protocol):
    """What a replica has to do."""

    @property
    def is_up(self) -> bool:
        """It takes requests."""

    @property
    def num_sequences(self) -> int:
        """Waiting and running."""

    @property
    def num_prompt_tokens(self) -> int:
        """Of prompts, as far as is known, that it has yet to compute: what its cache has of them does not count."""


class Route(NamedTuple):
    """Where a request goes."""

    replica: int
    num_cached_tokens: int = 0
    """Of the prompt, as far as is known: what that replica need not compute."""


class Prefixes:
    """The beginnings of prompts that one replica has had lately, as hashes of their chunks."""

    def __init__(self, max_chunks: int) -> None:
        self._max_chunks = max_chunks
        self._chunks: OrderedDict[int, None] = OrderedDict()

    def num_matching(self, hashes: Sequence[int]) -> int:
        """How many chunks of the prompt, from its beginning, it has had."""
        return next((number for number, each in enumerate(hashes) if each not in self._chunks), len(hashes))

    def add(self, chunks: Iterable[int]) -> None:
        """`chunks`: of each prompt the last first. A chunk is forgotten before those that stand in front of it."""
        for each in chunks:
            self._chunks[each] = None
            self._chunks.move_to_end(each)
        while len(self._chunks) > self._max_chunks:
            self._chunks.popitem(last=False)

    def clear(self) -> None:
        self._chunks.clear()


class Router:
    """Remembers what was sent where, by its own frontend and the others."""

    def __init__(self, policy: RoutingPolicy, routes: Routes, num_replicas: int, cache_tokens: int) -> None:
        """`cache_tokens`: how many a replica's KV cache holds."""
        self._policy = policy
        self._routes = routes
        self._turns = count()
        self._prefixes = [Prefixes(max(1, cache_tokens // CHUNK_TOKENS)) for _ in range(num_replicas)]

    def choose(self, prompt: bytes, salt: str, loads: Sequence[Load], among: Sequence[int] = ()) -> Route | None:
        """None where none is up. `prompt`: int32[n]. `among`: the replicas that can serve it, if not all can."""
        usable = [number for number in among or range(len(loads)) if loads[number].is_up]
        if not usable:
            return None
        turn = next(self._turns)
        if self._policy == "round-robin":
            return Route(usable[turn % len(usable)])
        hashes = chunk_hashes(prompt, salt, self._routes.key) if self._policy == "cache-aware" else []
        self._hear()
        cached = {number: CHUNK_TOKENS * self._prefixes[number].num_matching(hashes) for number in usable}

        def work(number: int) -> int:
            load = loads[number]
            return load.num_prompt_tokens + SEQUENCE_WORK * load.num_sequences - cached[number]

        best = min(usable, key=lambda number: (work(number), (number - turn) % len(loads)))  # equals take turns
        self._prefixes[best].add(reversed(hashes))
        self._routes.tell(best, hashes[::-1])
        return Route(best, cached[best])

    def forget(self, replica: int) -> None:
        """Its cache is empty."""
        self._hear()
        self._prefixes[replica].clear()
        self._routes.forget(replica)

    def _hear(self) -> None:
        for replica, chunks in self._routes.hear():
            self._prefixes[replica].add(chunks)


def chunk_hashes(prompt: bytes, salt: str, key: bytes) -> list[int]:
    """Of each whole chunk of the prompt, int32[n], and all that stands before it: 64 bits that frontends with the same
    key compute. Equal ones mean, as good as always, equal beginnings."""
    before = blake2b(salt.encode(), key=key, digest_size=_HASH_BYTES).digest()
    hashes = []
    for end in range(_CHUNK_BYTES, len(prompt) + 1, _CHUNK_BYTES):
        content = before + prompt[end - _CHUNK_BYTES : end]
        before = blake2b(content, key=key, digest_size=_HASH_BYTES).digest()
        hashes.append(int.from_bytes(before, "little"))
    return hashes
