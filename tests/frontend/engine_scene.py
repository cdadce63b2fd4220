"""An engine link of its own between an `EngineClient` and the coordinator's end of its socket, played by the test."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq
from fakes import logprob_records
from shared_routes import new_routes

from albireo import sockets
from albireo.frontend.detokenizer import Detokenizer
from albireo.frontend.engine_client import EngineClient
from albireo.frontend.generation import Generation
from albireo.frontend.request_metrics import RequestMetrics
from albireo.frontend.stop_strings import StopStrings
from albireo.frontend.token_scores import TokenScores
from albireo.messages import (
    Abort,
    Admitted,
    Crashed,
    Expired,
    Finish,
    Rejected,
    SamplingParams,
    Submit,
    Tokens,
    coordinator_decoder,
    encode,
)
from albireo.shm.flight import Part, Recorder, Unrecorded
from albireo.shm.layout import ENGINE_STATS, REQUEST_COUNTS

MARK = b"mark"
PROMPT = np.array([1], "<i4").tobytes()


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
        self.has_started = False
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


async def turns() -> None:
    """The loop does what it was asked to do soon."""
    for _ in range(3):
        await asyncio.sleep(0)


class Engine:
    """A client, and the coordinator's end of its socket."""

    def __init__(self, client: EngineClient, router: "zmq.Socket[bytes]", counts: npt.NDArray[Any]) -> None:
        """`counts`: REQUEST_COUNTS[1]."""
        self.client = client
        self.counts = counts
        self.router = router
        self.recorder = Notes()
        self.failures: list[Exception] = []
        self.others: list[zmq.Socket[bytes]] = []
        self.replace: Callable[[], None] = lambda: None
        self.num_taken = 0
        """Messages that the client has taken."""

    def submit(self, *stops: str, scores: TokenScores | None = None, min_tokens: int = 0) -> tuple[Generation, Log]:
        log = Log()
        watcher = StopStrings(stops, include_in_output=False) if stops else None
        generation = Generation(0, 1, Letters(), watcher, log, scores=scores, min_tokens=min_tokens)
        self.client.submit(generation, PROMPT, SamplingParams(max_tokens=10), 0, "")
        return generation, log

    def connect(self, link: "zmq.Socket[bytes]") -> None:
        """Has the client take its coordinator's messages there, and counts them."""
        on_frame = EngineClient._on_frame

        def counted(frame: bytes, begin_ns: int) -> None:
            try:
                on_frame(self.client, frame, begin_ns)
            finally:
                self.num_taken += 1

        self.client._on_frame = counted  # type: ignore[method-assign]
        self.client.connect(link)

    async def heard(self) -> list[Submit | Abort]:
        """What the coordinator has been sent: all that stands in front of a mark."""
        await turns()
        assert self.client._reader is not None
        self.client._reader.send(MARK)
        messages: list[Submit | Abort] = []
        while True:
            while not self.router.poll(0):
                await asyncio.sleep(0.001)
            self.identity, data = self.router.recv_multipart()
            if data == MARK:
                return messages
            messages.append(coordinator_decoder().decode(data))

    async def say(self, *messages: Tokens | Rejected | Expired | Abort | Crashed) -> None:
        """Until the client has taken them."""
        while not hasattr(self, "identity"):
            await self.heard()
        end = self.num_taken + len(messages)
        for message in messages:
            self.router.send_multipart([self.identity, encode(message)])
        while self.num_taken < end:
            await asyncio.sleep(0.001)
        await turns()

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


def new_client(recorder: Recorder, on_failure: Callable[[Exception], None], counts: npt.NDArray[Any]) -> EngineClient:
    """`counts`: REQUEST_COUNTS[1]."""
    loop, stats = asyncio.get_running_loop(), np.zeros(1, ENGINE_STATS)
    metrics, (routes,) = RequestMetrics(counts, 0), new_routes(1)
    return EngineClient(loop, metrics, recorder, lambda: 1, on_failure, itertools.count(1), stats, routes.loads[0])


Scene = Callable[[Engine], Coroutine[Any, Any, None]]


def play_scene(run_dir: Path, scene: Scene) -> None:
    """Runs a scene with an engine link of its own."""

    async def main() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        router, dealer = sockets.open_socket(context, zmq.ROUTER), sockets.open_socket(context, zmq.DEALER)
        router.bind(sockets.coordinator_address(str(run_dir)))
        dealer.connect(sockets.coordinator_address(str(run_dir)))
        failures: list[Exception] = []
        notes = Notes()
        counts = np.zeros(1, REQUEST_COUNTS)
        client = new_client(notes, failures.append, counts)
        engine = Engine(client, router, counts)
        engine.connect(dealer)
        engine.failures = failures
        engine.recorder = notes
        engine.others = [dealer, router]

        def replace() -> None:
            """Another coordinator takes the place."""
            other, link = sockets.open_socket(context, zmq.ROUTER), sockets.open_socket(context, zmq.DEALER)
            other.bind(sockets.coordinator_address(str(run_dir), "coordinator-0.1"))
            link.connect(sockets.coordinator_address(str(run_dir), "coordinator-0.1"))
            engine.connect(link)
            engine.router = other
            engine.others += [other, link]

        engine.replace = replace
        try:
            await scene(engine)
        finally:
            client.close()
            for socket in engine.others:
                socket.close()
            context.term()

    asyncio.run(main())
