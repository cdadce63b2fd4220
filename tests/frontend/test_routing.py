"""Which replica gets a request."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_routes import new_routes

from albireo.frontend.routing import CHUNK_TOKENS, SEQUENCE_WORK, Prefixes, Route, Router, chunk_hashes


@dataclass
class Replica:
    num_sequences: int = 0
    num_prompt_tokens: int = 0
    is_up: bool = True


def choose(router: Router, prompt: bytes, replicas: list[Replica], salt: str = "") -> int:
    route = router.choose(prompt, salt, replicas)
    assert route is not None
    return route.replica


def prompt(*parts: tuple[int, int]) -> bytes:
    """Parts of (how many tokens, which)."""
    return b"".join(np.full(size, token, "<i4").tobytes() for size, token in parts)


def test_a_prompt_goes_where_its_beginning_has_been() -> None:
    router, replicas = Router("cache-aware", new_routes(4)[0], 4, 100_000), [Replica() for _ in range(4)]
    first = choose(router, prompt((1000, 1)), replicas)
    replicas[first].num_sequences = 3
    for last in range(20):
        assert choose(router, prompt((1000, 1), (50, 100 + last)), replicas) == first


def test_it_does_not_where_computing_the_beginning_again_is_less_than_the_others_work() -> None:
    router, replicas = Router("cache-aware", new_routes(2)[0], 2, 100_000), [Replica(), Replica()]
    first = choose(router, prompt((CHUNK_TOKENS * 4, 1)), replicas)
    replicas[first].num_prompt_tokens = CHUNK_TOKENS * 4 - 1
    assert choose(router, prompt((CHUNK_TOKENS * 4, 1), (9, 2)), replicas) == first
    replicas[first].num_prompt_tokens = CHUNK_TOKENS * 4 + 1
    assert choose(router, prompt((CHUNK_TOKENS * 4, 1), (9, 2)), replicas) == 1 - first
    # and now both have it
    replicas[first].num_prompt_tokens, replicas[1 - first].num_sequences = 0, 1
    assert choose(router, prompt((CHUNK_TOKENS * 4, 1), (9, 3)), replicas) == first


def test_a_route_says_what_of_the_prompt_is_expected_to_be_cached() -> None:
    router, replicas = Router("cache-aware", new_routes(2)[0], 2, 100_000), [Replica(), Replica()]
    known, new = prompt((CHUNK_TOKENS * 3, 1)), prompt((CHUNK_TOKENS * 3, 1), (500, 2))
    first = choose(router, known, replicas)
    assert router.choose(new, "", replicas) == Route(first, 3 * CHUNK_TOKENS)
    replicas[first].num_prompt_tokens = 10_000
    assert router.choose(known, "", replicas) == Route(1 - first, 0)


def test_another_salt_is_another_cache() -> None:
    router, replicas = Router("cache-aware", new_routes(2)[0], 2, 100_000), [Replica(), Replica()]
    first = choose(router, prompt((1000, 1)), replicas, "a")
    replicas[first].num_sequences = 1
    assert choose(router, prompt((1000, 1)), replicas, "b") == 1 - first


@pytest.mark.parametrize("policy", ["cache-aware", "least-work"])
def test_the_replica_with_the_least_work_gets_it_and_equals_take_turns(policy: str) -> None:
    router, replicas = Router(policy, new_routes(3)[0], 3, 1000), [Replica(), Replica(), Replica()]  # type: ignore[arg-type]
    assert {choose(router, prompt((10, number)), replicas) for number in range(3)} == {0, 1, 2}
    replicas[0].num_sequences, replicas[1].num_prompt_tokens = 2, 2 * SEQUENCE_WORK - 1
    replicas[2].num_sequences, replicas[2].num_prompt_tokens = 1, SEQUENCE_WORK
    assert choose(router, prompt((10, 7)), replicas) == 1


@pytest.mark.parametrize("policy", ["cache-aware", "least-work", "round-robin"])
def test_one_that_is_down_gets_nothing(policy: str) -> None:
    router, replicas = Router(policy, new_routes(3)[0], 3, 1000), [Replica(), Replica(is_up=False), Replica()]  # type: ignore[arg-type]
    assert {choose(router, prompt((100, number % 2)), replicas) for number in range(20)} <= {0, 2}
    assert router.choose(prompt((1, 1)), "", [Replica(is_up=False)] * 3) is None


@pytest.mark.parametrize("policy", ["cache-aware", "least-work", "round-robin"])
def test_of_those_that_can_serve_it_one_that_is_up_gets_it(policy: str) -> None:
    router, replicas = Router(policy, new_routes(3)[0], 3, 100_000), [Replica(), Replica(9, 9999), Replica(is_up=False)]  # type: ignore[arg-type]
    for number in range(5):
        route = router.choose(prompt((100, number)), "", replicas, among=[1, 2])
        assert route is not None and route.replica == 1


def test_round_robin_gives_each_in_turn() -> None:
    router = Router("round-robin", new_routes(3)[0], 3, 1000)
    assert [choose(router, prompt((500, 1)), [Replica()] * 3) for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_replica_that_was_down_has_an_empty_cache() -> None:
    router, replicas = Router("cache-aware", new_routes(2)[0], 2, 100_000), [Replica(), Replica()]
    first = choose(router, prompt((1000, 1)), replicas)
    router.forget(first)
    replicas[first].num_sequences = 1
    assert choose(router, prompt((1000, 1)), replicas) == 1 - first


def test_frontends_know_of_each_other_s_requests_what_a_cache_has() -> None:
    one, other = (Router("cache-aware", routes, 2, 100_000) for routes in new_routes(2, num_frontends=2))
    replicas = [Replica(), Replica()]
    first = choose(one, prompt((1000, 1)), replicas)
    replicas[first].num_sequences = 3
    route = other.choose(prompt((1000, 1), (50, 2)), "", replicas)
    assert route == Route(first, 1000 // CHUNK_TOKENS * CHUNK_TOKENS)
    # and what the other has added to it
    assert one.choose(prompt((1000, 1), (50, 2), (9, 3)), "", replicas) == Route(
        first, 1050 // CHUNK_TOKENS * CHUNK_TOKENS
    )


def test_what_others_have_sent_to_a_replica_before_it_was_down_is_forgotten() -> None:
    one, other = (Router("cache-aware", routes, 2, 100_000) for routes in new_routes(2, num_frontends=2))
    replicas = [Replica(), Replica()]
    first = choose(one, prompt((1000, 1)), replicas)
    other.forget(first)
    replicas[first].num_sequences = 1
    assert other.choose(prompt((1000, 1)), "", replicas) == Route(1 - first, 0)


@given(
    seed=st.integers(0, 2**32), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=30), limit=st.integers(1, 30)
)
def test_what_is_known_of_a_prompt_is_its_beginning_and_the_memory_is_bounded(
    seed: int, sizes: list[int], limit: int
) -> None:
    rng, prefixes = random.Random(seed), Prefixes(limit)
    added: list[list[int]] = []
    for size in sizes:
        base = rng.choice(added)[: rng.randint(0, 12)] if added and rng.random() < 0.7 else []
        hashes = [*base, *(rng.getrandbits(62) for _ in range(size))]
        known = prefixes.num_matching(hashes)
        assert known <= max((common(hashes, other) for other in added), default=0)
        prefixes.add(reversed(hashes))
        assert prefixes.num_matching(hashes) == min(len(hashes), limit)
        added.append(hashes)


def common(one: list[int], other: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@given(st.lists(st.integers(0, 3), max_size=400), st.lists(st.integers(0, 3), max_size=400))
def test_chunks_have_the_same_hash_as_far_as_prompts_are_the_same(one: list[int], other: list[int]) -> None:
    hashes = [chunk_hashes(np.array(tokens, "<i4").tobytes(), "s", b"key") for tokens in (one, other)]
    assert [len(each) for each in hashes] == [len(one) // CHUNK_TOKENS, len(other) // CHUNK_TOKENS]
    assert common(*hashes) == min(common(one, other) // CHUNK_TOKENS, *map(len, hashes))
