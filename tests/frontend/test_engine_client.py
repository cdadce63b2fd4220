"""The engine link: exactly one terminal event per request, and one request's trouble is no other's."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zmq
from fakes import logprob_records

from albireo import sockets
from albireo.errors import InternalError, UnavailableError
from albireo.frontend.detokenizer import Detokenizer
from albireo.frontend.engine_client import EngineClient
from albireo.frontend.generation import Generation
from albireo.frontend.request_metrics import RequestMetrics
from albireo.frontend.stop_strings import StopStrings
from albireo.frontend.token_scores import TokenScores
from albireo.messages import (
    Abort,
    Admitted,
    Finish,
    Rejected,
    SamplingParams,
    Submit,
    Tokens,
    coordinator_decoder,
    encode,
)
from albireo.shm.flight import Part, Unrecorded
from albireo.shm.layout import REQUEST_COUNTS


class Letters(Detokenizer):
    """Token 0 is `a`; 99 cannot be decoded."""

    def __init__(self) -> None:
        pass

    def feed(self, token_id: int) -> str:
        if token_id == 99:
            raise RuntimeError("a bug")
        return chr(ord("a") + token_id)

    def flush(self) -> str:
        return ""


class Log:
    """A listener that notes how often it is told of an end, and when it is flushed."""

    def __init__(self) -> None:
        self.ends = 0
        self.calls = 0
        self.calls_at_flush: list[int] = []

    def on_output(self, generation: Generation, num_chars: int) -> None:
        self.calls += 1
        self.ends += generation.ended

    def flush(self) -> None:
        self.calls_at_flush.append(self.calls)


class Notes(Unrecorded):
    """A flight recorder that keeps what it is told in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[Part, int, int]] = []

    def start(self, step: int, num_rows: int = 0) -> int:
        self.step, self.num_rows = step, num_rows
        return 0

    def mark(self, part: Part) -> int:
        self.record(part, self.step, 0, 0, self.num_rows)
        return 0

    def record(self, part: Part, step: int, begin_ns: int, end_ns: int, num_rows: int = 0) -> None:
        self.parts.append((part, step, num_rows))


class Engine:
    """A client, and the coordinator's end of its socket."""

    def __init__(self, client: EngineClient, router: "zmq.Socket[bytes]", counts: npt.NDArray[Any]) -> None:
        """`counts`: REQUEST_COUNTS[1]."""
        self.client = client
        self.counts = counts
        self.router = router
        self.recorder = Notes()
        self.failures: list[Exception] = []

    def submit(self, *stops: str, scores: TokenScores | None = None, min_tokens: int = 0) -> tuple[Generation, Log]:
        log = Log()
        watcher = StopStrings(stops, include_in_output=False) if stops else None
        generation = Generation(0, 1, Letters(), watcher, log, scores=scores, min_tokens=min_tokens)
        self.client.submit(generation, [1], SamplingParams(max_tokens=10), 0, "")
        return generation, log

    async def heard(self) -> list[Submit | Abort]:
        """What the coordinator has been sent."""
        await asyncio.sleep(0.05)
        messages = []
        while self.router.poll(0):
            self.identity, data = self.router.recv_multipart()
            messages.append(coordinator_decoder().decode(data))
        return messages

    async def say(self, message: Tokens | Rejected) -> None:
        await self.heard() if not hasattr(self, "identity") else None
        self.router.send_multipart([self.identity, encode(message)])
        await asyncio.sleep(0.05)

    async def step(
        self,
        *rows: tuple[Generation, int, Finish],
        admitted: tuple[Admitted, ...] = (),
        scored: tuple[tuple[int, int], ...] = (),
    ) -> None:
        """`scored`: request id and position of each log-probability."""
        await self.say(
            Tokens(
                step=1,
                request_ids=np.array([row[0].request_id for row in rows], "<u8").tobytes(),
                token_ids=np.array([row[1] for row in rows], "<i4").tobytes(),
                finish=np.array([row[2] for row in rows], "u1").tobytes(),
                admitted=list(admitted),
                logprob_request_ids=np.array([id_ for id_, _ in scored], "<u8").tobytes(),
                logprobs=logprob_records([position for _, position in scored], [7] * len(scored), 0).tobytes(),
            )
        )


@pytest.fixture
def play(run_dir: Path) -> Callable[[Callable[[Engine], Coroutine[Any, Any, None]]], None]:
    """Runs a scene with an engine link of its own."""

    def run(scene: Callable[[Engine], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            router, dealer = sockets.open_socket(context, zmq.ROUTER), sockets.open_socket(context, zmq.DEALER)
            router.bind(sockets.coordinator_address(str(run_dir)))
            dealer.connect(sockets.coordinator_address(str(run_dir)))
            failures: list[Exception] = []
            loop = asyncio.get_running_loop()
            notes = Notes()
            counts = np.zeros(1, REQUEST_COUNTS)
            client = EngineClient(loop, dealer, RequestMetrics(counts, 0), notes, lambda: 1, failures.append)
            engine = Engine(client, router, counts)
            engine.failures = failures
            engine.recorder = notes
            try:
                await scene(engine)
            finally:
                client.close()
                router.close()
                dealer.close()
                context.term()

        asyncio.run(main())

    return run


Play = Callable[[Callable[[Engine], Coroutine[Any, Any, None]]], None]


def test_a_request_ends_once_and_later_rows_are_dropped(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, log = engine.submit()
        await engine.step((generation, 0, Finish.NONE))
        await engine.step((generation, 1, Finish.LENGTH))
        await engine.step((generation, 2, Finish.LENGTH))
        assert (log.ends, generation.finish_reason, generation.take()[0]) == (1, "length", "ab")
        assert engine.client.num_live == 0

    play(scene)


def test_after_an_abort_nothing_more_is_heard_of_a_request(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, log = engine.submit()
        engine.client.abort([generation, generation])
        await engine.step((generation, 0, Finish.NONE))
        await engine.say(Rejected(generation.request_id, "prompt", "no"))
        assert (log.calls, generation.ended) == (0, False)

    play(scene)


def test_aborts_of_one_turn_are_one_message(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generations = [engine.submit()[0] for _ in range(3)]
        for generation in generations:
            engine.client.abort([generation])
        assert (await engine.heard())[3:] == [Abort([1, 2, 3])]

    play(scene)


def test_a_stop_string_ends_a_request_once_and_aborts_it(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, log = engine.submit("bc")
        await engine.step((generation, 0, Finish.NONE))
        await engine.step((generation, 1, Finish.NONE))
        await engine.step((generation, 2, Finish.NONE))
        await engine.step((generation, 3, Finish.LENGTH))
        assert (log.ends, generation.finish_reason, generation.stop_reason) == (1, "stop", "bc")
        assert (generation.take()[0], generation.num_tokens) == ("a", 3)
        assert await engine.heard() == [Abort([generation.request_id])]

    play(scene)


def test_a_stop_string_in_the_last_token_needs_no_abort(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, _ = engine.submit("b")
        await engine.step((generation, 1, Finish.LENGTH))
        assert generation.finish_reason == "stop"
        assert await engine.heard() == []

    play(scene)


def test_text_held_back_for_a_stop_string_is_shown_at_the_end(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, log = engine.submit("bcd")
        await engine.step((generation, 1, Finish.NONE))
        assert log.calls == 0
        await engine.step((generation, 2, Finish.LENGTH))
        assert (generation.finish_reason, generation.take()[0]) == ("length", "bc")

    play(scene)


def test_one_request_s_bug_ends_that_request_alone(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        broken, log = engine.submit()
        fine, _ = engine.submit()
        await engine.step((broken, 99, Finish.NONE), (fine, 0, Finish.LENGTH))
        assert isinstance(broken.error, InternalError)
        assert "bug" not in broken.error.message
        assert log.ends == 1
        assert (fine.finish_reason, fine.take()[0]) == ("length", "a")
        assert await engine.heard() == [Abort([broken.request_id])]
        assert engine.failures == []
        ends = {name: int(engine.counts[name][0]) for name in ("finished_error", "finished_abort", "finished_length")}
        assert ends == {"finished_error": 1, "finished_abort": 0, "finished_length": 1}

    play(scene)


def test_a_message_of_another_kind_is_a_failure_of_the_link(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        engine.submit()
        await engine.heard()
        engine.router.send_multipart([engine.identity, encode(Abort([1]))])
        await asyncio.sleep(0.05)
        assert len(engine.failures) == 1

    play(scene)


def test_log_probabilities_go_to_their_requests_and_strangers_are_dropped(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        first, _ = engine.submit(scores=TokenScores(3, scores_prompt=True))
        second, _ = engine.submit(scores=TokenScores(1, scores_prompt=False))
        third, _ = engine.submit()
        await engine.step(scored=((1, 1), (99, 1), (99, 2)))
        await engine.step(
            (third, 0, Finish.NONE),
            (second, 0, Finish.NONE),
            (first, 0, Finish.LENGTH),
            scored=((1, 2), (1, 3), (2, 1), (3, 1), (77, 5)),
        )
        await engine.step((second, 1, Finish.LENGTH), scored=((1, 4), (2, 2)))
        assert first.scores is not None
        assert first.scores.prompt is not None
        assert first.scores.prompt["position"].tolist() == [0, 1, 2]
        assert first.take_scores()["position"].tolist() == [3]
        assert second.take_scores()["position"].tolist() == [1, 2]
        assert third.num_tokens == 1
        assert engine.failures == []

    play(scene)


def test_a_stop_string_ends_nothing_before_min_tokens(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, _ = engine.submit("a", min_tokens=2)
        for _ in range(2):
            await engine.step((generation, 0, Finish.NONE))
        reason_before = generation.finish_reason
        await engine.step((generation, 0, Finish.NONE))
        reasons = (reason_before, generation.finish_reason)
        assert (*reasons, generation.take()[0], generation.num_tokens) == (None, "stop", "aa", 3)

    play(scene)


def test_log_probabilities_behind_a_stop_string_are_not_the_client_s(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, _ = engine.submit("bc", scores=TokenScores(1, scores_prompt=False))
        rows = [(generation, token, Finish.NONE) for token in range(4)]
        await engine.step(*rows, scored=tuple((1, position) for position in range(1, 5)))
        assert generation.finish_reason == "stop"
        assert generation.take_scores()["position"].tolist() == [1, 2, 3]

    play(scene)


def test_cached_tokens_come_with_the_admission(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, _ = engine.submit()
        await engine.step((generation, 0, Finish.NONE), admitted=(Admitted(generation.request_id, 48),))
        assert generation.num_cached_tokens == 48
        await engine.step((generation, 0, Finish.NONE), admitted=(Admitted(generation.request_id, 5),))
        assert generation.num_cached_tokens == 48, "readmission after a preemption is no cache hit"

    play(scene)


def test_a_step_is_fed_as_a_whole_before_anything_is_written(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        log = Log()
        generations = [Generation(index, 1, Letters(), None, log) for index in range(3)]
        for generation in generations:
            engine.client.submit(generation, [1], SamplingParams(max_tokens=10), 0, "")
        await engine.step(*((generation, 0, Finish.NONE) for generation in generations))
        assert log.calls_at_flush == [3]

    play(scene)


def test_the_parts_of_a_step_are_recorded_in_order(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        pairs = [engine.submit() for _ in range(2)]
        await engine.step(*((generation, 0, Finish.NONE) for generation, _ in pairs))
        assert engine.recorder.parts == [(Part.RECEIVE, 1, 2), (Part.DETOKENISE, 1, 2), (Part.SEND, 1, 2)]

    play(scene)


def test_stopping_fails_every_live_request_once(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        pairs = [engine.submit() for _ in range(3)]
        engine.client.fail_all(UnavailableError("stopping"))
        engine.client.fail_all(UnavailableError("stopping"))
        assert [log.ends for _, log in pairs] == [1, 1, 1]
        assert all(isinstance(generation.error, UnavailableError) for generation, _ in pairs)
        assert engine.client.num_live == 0

    play(scene)


def test_a_burst_of_messages_is_read_to_its_end(play: Play) -> None:
    async def scene(engine: Engine) -> None:
        generation, log = engine.submit()
        await engine.heard()
        frame = Tokens(1, np.array([1], "<u8").tobytes(), np.array([0], "<i4").tobytes(), b"\0")
        for _ in range(1000):
            engine.router.send_multipart([engine.identity, encode(frame)])
        await asyncio.sleep(0.3)
        assert generation.num_tokens == log.calls == 1000

    play(scene)
