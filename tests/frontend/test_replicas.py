"""Requests among replicas: those of one that is down go on with the others, exactly once and with what they have."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zmq
from engine_scene import Letters, Log, Notes
from shared_routes import new_routes

from albireo import sockets
from albireo.errors import StoppingError, UnavailableError
from albireo.frontend.engine_client import EngineClient
from albireo.frontend.generation import Generation
from albireo.frontend.replicas import Replicas
from albireo.frontend.request_metrics import RequestMetrics
from albireo.frontend.routing import CHUNK_TOKENS, Router
from albireo.messages import (
    Abort,
    Admitted,
    Failed,
    Finish,
    Grammar,
    Resumed,
    SamplingParams,
    Submit,
    Tokens,
    coordinator_decoder,
    encode,
)
from albireo.shm.layout import ENGINE_STATS, REQUEST_COUNTS

LONG = list(range(200))
DIGITS = Grammar("regex", "[0-9]+", "structured_outputs")
PATIENCE = 600
"""How often it is looked for what must come."""


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(PATIENCE):
        if condition():
            return
        await asyncio.sleep(0.01)


class Coordinator:
    """One replica's, played by the test."""

    def __init__(self, router: "zmq.Socket[bytes]") -> None:
        self.router = router
        self.num_sent = 0
        self.num_taken = 0
        """Messages that the client has taken."""

    def connect(self, client: EngineClient, link: "zmq.Socket[bytes]") -> None:
        """Has the client take this coordinator's messages there, and counts them."""
        on_frame = EngineClient._on_frame

        def counted(frame: bytes, begin_ns: int) -> None:
            try:
                on_frame(client, frame, begin_ns)
            finally:
                self.num_taken += 1

        client._on_frame = counted  # type: ignore[method-assign]
        client.connect(link)

    async def heard(self) -> list[Submit | Abort]:
        await asyncio.sleep(0.05)
        messages = []
        while self.router.poll(0):
            self.identity, data = self.router.recv_multipart()
            messages.append(coordinator_decoder().decode(data))
        return messages

    async def submitted(self) -> list[Submit]:
        """From the first one on that comes; a busy machine may take its time."""
        found: list[Submit] = []
        for _ in range(PATIENCE):
            found = [message for message in await self.heard() if isinstance(message, Submit)]
            if found:
                break
        return found

    async def aborted(self) -> list[int]:
        """Likewise."""
        found: list[int] = []
        for _ in range(PATIENCE):
            found = [number for each in await self.heard() if isinstance(each, Abort) for number in each.request_ids]
            if found:
                break
        return found

    async def say(self, request_id: int, token: int, finish: Finish = Finish.NONE, admitted: bool = False) -> None:
        ids, token_ids = np.array([request_id], "<u8").tobytes(), np.array([token], "<i4").tobytes()
        await self._send(Tokens(1, ids, token_ids, bytes([finish]), [Admitted(request_id, 0)] if admitted else []))

    async def admit(self, request_id: int, num_cached_tokens: int) -> None:
        await self._send(Tokens(1, b"", b"", b"", [Admitted(request_id, num_cached_tokens)]))

    async def give_up(self, request_id: int) -> None:
        """The request is constrained, and there is no grammar process."""
        await self._send(Failed(request_id, "it has died", is_transient=True))

    async def _send(self, message: Tokens | Failed) -> None:
        """Until the client has taken it."""
        self.router.send_multipart([self.identity, encode(message)])
        self.num_sent += 1
        await until(lambda: self.num_taken == self.num_sent)
        assert self.num_taken == self.num_sent


class Stage:
    def __init__(self, replicas: Replicas, coordinators: list[Coordinator], stats: npt.NDArray[Any]) -> None:
        """`stats`: ENGINE_STATS[2]."""
        self.stats = stats
        self.replicas = replicas
        self.coordinators = coordinators

    def submit(
        self,
        prompt: list[int],
        leader: Generation | None = None,
        leads: bool = False,
        grammar: Grammar | None = None,
    ) -> Generation:
        generation = Generation(0, len(prompt), Letters(), None, Log())
        leader = generation if leads else leader
        self.replicas.submit(generation, prompt, SamplingParams(max_tokens=10), 0, "", grammar, leader)
        return generation


Scene = Callable[[Stage], Coroutine[Any, Any, None]]


@pytest.fixture
def play(run_dir: Path) -> Callable[[Scene], None]:
    """Runs a scene with two replicas that are up."""

    async def main(scene: Scene) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        numbers, counts, stats = itertools.count(1), np.zeros(2, REQUEST_COUNTS), np.zeros(2, ENGINE_STATS)
        links, coordinators, clients = [], [], []
        (routes,) = new_routes(2)
        for number in range(2):
            router, link = sockets.open_socket(context, zmq.ROUTER), sockets.open_socket(context, zmq.DEALER)
            router.bind(sockets.coordinator_address(str(run_dir), f"coordinator-{number}"))
            link.connect(sockets.coordinator_address(str(run_dir), f"coordinator-{number}"))
            metrics = RequestMetrics(counts[number : number + 1], 0)
            loop, own, load = asyncio.get_running_loop(), stats[number : number + 1], routes.loads[number]
            clients.append(EngineClient(loop, metrics, Notes(), lambda: 1, print, numbers, own, load))
            coordinators.append(Coordinator(router))
            links.append(link)
        replicas = Replicas(clients, partial(Router, "cache-aware", routes, 2))
        for number, (client, link) in enumerate(zip(clients, links, strict=True)):
            coordinators[number].connect(client, link)
            replicas.up(number, 10_000)
        try:
            await scene(Stage(replicas, coordinators, stats))
        finally:
            replicas.close()
            for socket in (*links, *(coordinator.router for coordinator in coordinators)):
                socket.close()
            context.term()

    return lambda scene: asyncio.run(main(scene))


def test_a_stream_goes_on_with_the_other_replica_from_where_it_is(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        generation = stage.submit(LONG)
        number = generation.replica
        old, new = stage.coordinators[number], stage.coordinators[1 - number]
        (first,) = await old.submitted()
        await old.say(first.request_id, 3, admitted=True)
        stage.replicas.down(number)
        assert await old.aborted() == [first.request_id]
        (again,) = await new.submitted()
        assert again.request_id != first.request_id
        assert again.resumed == Resumed(1)
        assert np.frombuffer(again.prompt_token_ids, "<i4").tolist() == [*LONG, 3]
        await old.say(first.request_id, 4)  # late words
        await new.say(again.request_id, 5, Finish.EOS)
        assert generation.finish_reason == "stop"
        assert list(generation.history) == [3, 5]
        assert stage.replicas.num_live == stage.replicas.num_waiting == 0

    play(scene)


def test_a_stream_may_come_back_to_the_replica_that_it_left(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        generation = stage.submit(LONG)
        first = generation.replica
        numbers = [generation.request_id]
        for down in (first, 1 - first):
            stage.replicas.down(down)
            numbers.append(generation.request_id)
            stage.replicas.up(down, 10_000)
        assert generation.replica == first
        assert len(set(numbers)) == 3, "what is said of one is never taken for another's"
        assert await stage.coordinators[first].aborted() == numbers[:1]

    play(scene)


def test_while_none_is_up_a_request_waits_for_the_first_that_is(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        before = stage.submit(LONG)
        for number in range(2):
            stage.replicas.down(number)
        during = stage.submit(LONG)
        for coordinator in stage.coordinators:
            await coordinator.heard()
        stage.replicas.up(1, 10_000)
        assert before.replica == during.replica == 1
        assert stage.replicas.num_live == stage.replicas.num_waiting == 2

    play(scene)


def test_what_a_replica_that_is_down_said_last_is_not_counted_twice(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        stage.submit(LONG)
        stage.stats["num_waiting"] = 100, 20  # other frontends' too
        assert stage.replicas.num_waiting == 120
        stage.replicas.down(0)
        stage.stats["num_waiting"][1] = 120  # it has got them
        assert stage.replicas.num_waiting == 120
        stage.replicas.down(1)
        assert stage.replicas.num_waiting == 220
        stage.stats["num_waiting"] = 0
        assert stage.replicas.num_waiting == 1

    play(scene)


def test_what_may_kill_replicas_stays_with_the_third_that_is_down(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        async def die_and_come_back(number: int) -> None:
            stage.replicas.down(number)
            for coordinator in stage.coordinators:
                await coordinator.heard()
            stage.replicas.up(number, 10_000)

        killer, other = stage.submit(LONG), stage.submit(LONG[1:])
        assert {killer.replica, other.replica} == {0, 1}
        for each in (killer, other):
            await stage.coordinators[each.replica].heard()
        first = killer.replica
        for down in (first, 1 - first):
            await die_and_come_back(down)
        assert killer.replica == other.replica == first
        left = other.request_id
        await stage.coordinators[first].say(left, 5)  # it gets on
        stage.replicas.down(first)
        assert killer.replica == first, "its coordinator knows who was in flight, and ends it when it kills again"
        assert other.replica == 1 - first
        stage.replicas.up(first, 10_000)
        assert await stage.coordinators[first].aborted() == [left]
        await stage.coordinators[first].say(killer.request_id, 3)  # it was none
        stage.replicas.down(first)
        assert killer.replica == 1 - first

    play(scene)


def test_a_constrained_request_goes_where_grammars_are_served_and_others_do_not_care(
    play: Callable[[Scene], None],
) -> None:
    async def scene(stage: Stage) -> None:
        stage.stats["grammars_are_down"][0] = 1
        assert {stage.submit([number], grammar=DIGITS).replica for number in range(6)} == {1}
        assert {stage.submit([number]).replica for number in range(6, 16)} == {0, 1}
        stage.stats["grammars_are_down"] = 1, 0
        waits = stage.submit(LONG, grammar=DIGITS)
        stage.replicas.down(1)
        assert waits.replica == 1, "nobody else serves it, and its own will when it is back"
        assert stage.submit(LONG, grammar=DIGITS).replica == 0  # which says that it does not
        stage.stats["grammars_are_down"] = 0, 1
        stage.replicas.up(1, 10_000)
        assert waits.replica == 1 and not waits.ended
        assert {stage.submit([number], grammar=DIGITS).replica for number in range(20, 26)} == {0}

    play(scene)


def test_a_constrained_request_that_its_replica_gives_up_goes_on_with_another(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        generation = stage.submit(LONG, grammar=DIGITS)
        number = generation.replica
        old, new = stage.coordinators[number], stage.coordinators[1 - number]
        (first,) = await old.submitted()
        await old.say(first.request_id, 3, admitted=True)
        await old.give_up(first.request_id)
        (again,) = await new.submitted()
        assert (again.resumed, again.grammar) == (Resumed(1), DIGITS)
        await new.say(again.request_id, 5, Finish.EOS)
        await until(lambda: generation.ended)
        assert list(generation.history) == [3, 5]
        assert stage.replicas.num_live == 0

    play(scene)


def test_a_request_that_every_replica_gives_up_ends(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        generation = stage.submit(LONG, grammar=DIGITS)
        for number in (generation.replica, 1 - generation.replica, generation.replica):
            assert generation.replica == number
            (submit,) = await stage.coordinators[number].submitted()
            await stage.coordinators[number].give_up(submit.request_id)
            await until(lambda n=number: generation.ended or generation.replica != n)  # type: ignore[misc]
        assert generation.error is not None and generation.error.status == 503
        other = stage.submit(LONG, grammar=DIGITS)
        stage.replicas.down(1 - other.replica)
        coordinator = stage.coordinators[other.replica]
        (submit,) = await coordinator.submitted()
        await coordinator.give_up(submit.request_id)
        await until(lambda: other.ended)
        assert other.error is not None and stage.replicas.num_live == 0

    play(scene)


def test_samples_of_a_prompt_stay_together(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        leader = stage.submit([1], leads=True)
        samples = [leader, *(stage.submit([1], leader) for _ in range(3))]
        assert {sample.replica for sample in samples} == {leader.replica}
        stage.replicas.down(leader.replica)
        assert {sample.replica for sample in samples} == {leader.replica}
        assert len({each.sample_group for each in await stage.coordinators[leader.replica].submitted()}) == 1

    play(scene)


def test_an_abort_reaches_the_replica_that_has_the_request(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        generations = [stage.submit([number]) for number in range(4)]
        assert {generation.replica for generation in generations} == {0, 1}
        stage.replicas.abort(generations[:3])
        for number, coordinator in enumerate(stage.coordinators):
            own = [each.request_id for each in generations[:3] if each.replica == number]
            assert await coordinator.aborted() == own
        stage.replicas.fail_all(StoppingError())
        assert generations[3].error is not None
        assert stage.replicas.num_live == 0

    play(scene)


def test_work_is_counted_down_as_it_is_done(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        generation = stage.submit(LONG)
        client = stage.replicas._clients[generation.replica]
        coordinator = stage.coordinators[generation.replica]
        (submit,) = await coordinator.submitted()
        assert (client.num_prompt_tokens, client.num_sequences) == (len(LONG), 1)
        await coordinator.say(submit.request_id, 1)
        assert (client.num_prompt_tokens, client.num_sequences) == (0, 1)
        await coordinator.say(submit.request_id, 1, Finish.EOS)
        assert (client.num_prompt_tokens, client.num_sequences) == (0, 0)
        stage.submit(LONG)
        stage.replicas.fail_all(UnavailableError("stop"))
        assert [each.num_prompt_tokens for each in stage.replicas._clients] == [0, 0]

    play(scene)


def test_what_is_cached_of_a_prompt_is_no_work_first_as_expected_then_as_it_is(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        first = stage.submit(LONG)
        number, coordinator = first.replica, stage.coordinators[first.replica]
        client = stage.replicas._clients[number]
        (submit,) = await coordinator.submitted()
        await coordinator.say(submit.request_id, 1, Finish.EOS, admitted=True)
        again = stage.submit([*LONG, 1, 2])
        assert again.replica == number
        assert client.num_prompt_tokens == len(LONG) + 2 - len(LONG) // CHUNK_TOKENS * CHUNK_TOKENS
        (submit,) = await coordinator.submitted()
        await coordinator.admit(submit.request_id, 16)
        assert client.num_prompt_tokens == len(LONG) + 2 - 16
        await coordinator.say(submit.request_id, 1)
        assert client.num_prompt_tokens == 0

    play(scene)


def test_samples_of_a_prompt_are_its_work_once(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        leader = stage.submit(LONG, leads=True)
        for _ in range(3):
            stage.submit(LONG, leader)
        client = stage.replicas._clients[leader.replica]
        assert (client.num_prompt_tokens, client.num_sequences) == (len(LONG), 4)

    play(scene)
