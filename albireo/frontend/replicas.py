"""The engine's replicas as one: each request goes to one of them, and to another when that one is down."""

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from albireo.errors import RequestError
from albireo.frontend.engine_client import EngineClient
from albireo.frontend.generation import Generation
from albireo.frontend.routing import Route, Router
from albireo.frontend.waiting import priority_of
from albireo.messages import Grammar, SamplingParams

logger = logging.getLogger(__name__)


class Replicas:
    """Lives on the event loop's thread. While no replica is up, what runs waits with the one that had it."""

    def __init__(self, clients: Sequence[EngineClient], make_router: Callable[[int], Router]) -> None:
        """`clients`: of each replica. `make_router` gets the tokens that a replica's KV cache holds."""
        self._clients = clients
        for client in clients:
            client.goes_elsewhere = self._goes_elsewhere
        self._make_router = make_router
        self._router: Router | None = None
        """From the first `up` on."""
        self.num_responses = 0
        """Being written: of live generations, and of those whose client has not taken the end yet."""

    @property
    def num_live(self) -> int:
        return sum(client.num_live for client in self._clients)

    def is_up(self, replica: int) -> bool:
        """It computes, as far as the supervisor knows."""
        return self._clients[replica].is_up

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for their first step: those here, or as many as the replicas say of all frontends', if
        more. What one that is down said last is with others now, which say it too; it counts while none is up."""
        said = [client for client in self._clients if client.is_up] or self._clients
        return max(
            sum(client.num_waiting for client in self._clients), sum(client.num_waiting_of_all for client in said)
        )

    def up(self, replica: int, cache_tokens: int) -> None:
        """It computes, and its KV cache holds so many tokens. What waits for replicas that are down comes here."""
        if self._router is None:
            self._router = self._make_router(cache_tokens)
        self._clients[replica].is_up = True
        for number, other in enumerate(self._clients):
            if not other.is_up:
                self._move_all(number)

    def down(self, replica: int) -> None:
        """It takes no requests for a while: those that it has go on with the others."""
        self._clients[replica].is_up = False
        if self._router is not None:
            self._router.forget(replica)
        if any(client.is_up for client in self._clients):
            self._move_all(replica)

    def _move_all(self, replica: int) -> None:
        # where no other serves grammars, the constrained wait for their own replica: it serves them when it is back
        generations = self._clients[replica].leave(lambda generation: bool(self._able(_grammar_of(generation))))
        if generations:
            logger.warning("replica %d is down: %d requests go on with others", replica, len(generations))
        leaders: dict[int, Route] = {}
        for generation in generations:
            submission = generation.submission
            assert submission is not None, "a live generation was submitted"
            group = submission.sample_group or submission.request_id
            if group not in leaders:  # the samples of a prompt stay together
                able = self._able(submission.grammar)
                leaders[group] = self._choose(submission.prompt_token_ids, submission.cache_salt, able)
            self._adopt(generation, leaders[group])

    def _adopt(self, generation: Generation, route: Route) -> None:
        generation.replica = route.replica
        self._clients[route.replica].adopt(generation, route.num_cached_tokens)

    def _goes_elsewhere(self, generation: Generation) -> bool:
        """Its replica has given it up, though nothing is wrong with it: whether another goes on with it. Not for ever:
        those may give it up too, one after the other."""
        submission = generation.submission
        assert submission is not None, "a live generation was submitted"
        able = [number for number in self._able(submission.grammar) if number != generation.replica]
        if not able or not generation.may_leave():
            return False
        self._clients[generation.replica].release(generation)
        self._adopt(generation, self._choose(submission.prompt_token_ids, submission.cache_salt, able))
        return True

    def _able(self, grammar: Grammar | None) -> list[int]:
        """The replicas that are up, and serve grammars where it needs that."""
        return [
            number
            for number, client in enumerate(self._clients)
            if client.is_up and (grammar is None or client.serves_grammars)
        ]

    def submit(
        self,
        generation: Generation,
        prompt: list[int],
        sampling: SamplingParams,
        priority: int,
        cache_salt: str,
        grammar: Grammar | None = None,
        leader: Generation | None = None,
    ) -> None:
        """Hands a checked request to a replica. `leader`: the first of the samples of its prompt, if there are
        several. Raises UnavailableError."""
        tokens = np.array(prompt, "<i4").tobytes()
        if leader is None or leader is generation or not self._clients[leader.replica].is_up:
            route = self._choose(tokens, cache_salt, self._able(grammar))
        else:
            route = Route(leader.replica, len(prompt))  # samples share the blocks of their prompt
        generation.replica = route.replica
        self._clients[generation.replica].submit(
            generation, tokens, sampling, priority, cache_salt, grammar, leader, route.num_cached_tokens
        )

    def _choose(self, prompt: bytes, salt: str, able: Sequence[int]) -> Route:
        """`able`: who can serve it. Where none can, who gets it says so."""
        if len(self._clients) == 1:
            return Route(0)
        route = None if self._router is None else self._router.choose(prompt, salt, self._clients, able)
        if route is None:  # none is up: it waits where there is a coordinator
            route = Route(next((number for number, client in enumerate(self._clients) if client.is_connected), 0))
        return route

    def abort(self, generations: Iterable[Generation]) -> None:
        """Forgets those that have not ended, and tells who has them. Nothing more is heard of them."""
        for replica, own in itertools.groupby(generations, lambda generation: generation.replica):
            self._clients[replica].abort(own)

    def last_waiting_behind(self, priority: int) -> Generation | None:
        """Of those that wait here for their first step, who gives way to a request of that priority."""
        last = [client.last_waiting_behind(priority) for client in self._clients]
        return max((each for each in last if each is not None), key=priority_of, default=None)

    def fail(self, generation: Generation, error: RequestError) -> None:
        """Ends a live generation with `error`, and tells who has it."""
        self._clients[generation.replica].fail(generation, error)

    def fail_all(self, error: RequestError) -> None:
        """Ends every live generation with `error`: the server stops."""
        for client in self._clients:
            client.fail_all(error)

    def close(self) -> None:
        """Sends the aborts that are left and stops listening."""
        for client in self._clients:
            client.close()


def _grammar_of(generation: Generation) -> Grammar | None:
    assert generation.submission is not None, "a live generation was submitted"
    return generation.submission.grammar
