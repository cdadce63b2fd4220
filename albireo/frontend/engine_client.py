"""The one place that talks to the coordinator: requests go out, and each step's rows come back as one message."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable

import numpy as np
import zmq

from albireo.errors import InternalError, RequestError, UnavailableError
from albireo.frontend.generation import Generation, Listener
from albireo.frontend.request_metrics import RequestMetrics
from albireo.frontend.socket_reader import SocketReader
from albireo.messages import (
    Abort,
    Finish,
    Grammar,
    Rejected,
    SamplingParams,
    Submit,
    Tokens,
    encode,
    frontend_decoder,
)
from albireo.shm.flight import Part, Recorder
from albireo.shm.layout import LOGPROB

logger = logging.getLogger(__name__)


class EngineClient:
    """Live generations by request id. An id is known from `submit` until its one terminal event or its abort.

    Lives on the event loop's thread. The socket's high-water marks are off: a request sends two messages at most,
    and its tokens must not be dropped; the client's own limits bound both.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        socket: "zmq.Socket[bytes]",
        metrics: RequestMetrics,
        recorder: Recorder,
        clock_ns: Callable[[], int],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._loop = loop
        self._metrics = metrics
        self._recorder = recorder
        self._clock_ns = clock_ns
        self._decoder = frontend_decoder()
        self._numbers = itertools.count(1)
        self._live: dict[int, Generation] = {}
        self._aborted: list[int] = []
        self.num_waiting = 0
        """Live generations of which the engine has computed nothing yet."""
        self._reader = SocketReader(loop, socket, self._on_frame, on_failure, clock_ns)

    @property
    def num_live(self) -> int:
        return len(self._live)

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
        """Hands a checked request to the coordinator. `leader`: the first of the samples of its prompt, if there are
        several."""
        generation.request_id = request_id = next(self._numbers)
        generation.submitted_ns = self._clock_ns()
        tokens = np.array(prompt, "<i4").tobytes()
        group = 0 if leader is None else leader.request_id
        self._send(encode(Submit(request_id, tokens, sampling, priority, cache_salt, grammar, group)))
        self._live[request_id] = generation
        self.num_waiting += 1

    def _drop(self, request_id: int) -> Generation | None:
        """Its terminal event or abort is here."""
        generation = self._live.pop(request_id, None)
        if generation is not None and not generation.admitted_ns:
            self.num_waiting -= 1
        return generation

    def abort(self, generations: Iterable[Generation]) -> None:
        """Forgets those that have not ended, and tells the coordinator. Nothing more is heard of them."""
        for generation in generations:
            if self._drop(generation.request_id) is not None:
                self._abort(generation.request_id)
                self._metrics.observe_end(generation, "abort", self._clock_ns())

    def fail_all(self, error: RequestError) -> None:
        """Ends every live generation with `error`: the server stops."""
        while self._live:
            request_id = next(iter(self._live))
            generation = self._drop(request_id)
            assert generation is not None
            self._abort(request_id)
            generation.fail(error)

    def close(self) -> None:
        """Sends the aborts that are left and stops listening."""
        self._flush_aborts()
        self._reader.close()

    def _send(self, frame: bytes) -> None:
        try:
            self._reader.send(frame)
        except zmq.Again as error:
            raise UnavailableError("the engine does not take requests") from error

    def _abort(self, request_id: int) -> None:
        """One message for all that end in the same turn of the loop."""
        if not self._aborted:
            self._loop.call_soon(self._flush_aborts)
        self._aborted.append(request_id)

    def _flush_aborts(self) -> None:
        if self._aborted:
            self._send(encode(Abort(self._aborted)))
            self._aborted = []

    def _on_frame(self, frame: bytes, begin_ns: int) -> None:
        message = self._decoder.decode(frame)
        if isinstance(message, Tokens):
            self._on_tokens(message, begin_ns)
        elif isinstance(message, Rejected):
            self._on_end(message.request_id, RequestError(message.message, field=message.field or None))
        else:
            logger.error("request %d failed: %s", message.request_id, message.message)
            if (generation := self._live.get(message.request_id)) is not None:
                self._metrics.observe_end(generation, "error", self._clock_ns())
            self._on_end(message.request_id, InternalError(message.message))

    def _on_end(self, request_id: int, error: RequestError) -> None:
        generation = self._drop(request_id)
        if generation is not None:
            generation.fail(error)

    def _on_tokens(self, message: Tokens, begin_ns: int) -> None:
        """One step: first every token is fed, then every response with something new is written once."""
        recorder = self._recorder
        now_ns = self._clock_ns()
        recorder.record(Part.RECEIVE, message.step, begin_ns, now_ns, len(message.finish))
        recorder.start(message.step, len(message.finish))
        for admitted in message.admitted:
            generation = self._live.get(admitted.request_id)
            if generation is not None and not generation.admitted_ns:  # again after a preemption
                generation.admitted_ns = now_ns
                self.num_waiting -= 1
                generation.num_cached_tokens = admitted.num_cached_tokens
        if message.logprobs:
            self._distribute(message)
        listeners = self._feed_all(message, now_ns)
        recorder.mark(Part.DETOKENISE)
        for listener in listeners:
            listener.flush()
        recorder.mark(Part.SEND)

    def _feed_all(self, message: Tokens, now_ns: int) -> Iterable[Listener]:
        """Each row to its generation; returns who is to be flushed."""
        listeners: dict[Listener, None] = {}
        gaps: dict[int, int] = {}
        live = self._live
        request_ids = np.frombuffer(message.request_ids, "<u8").tolist()
        token_ids = np.frombuffer(message.token_ids, "<i4").tolist()
        for request_id, token_id, finish in zip(request_ids, token_ids, message.finish, strict=True):
            generation = live.get(request_id)
            if generation is None:  # it was aborted while this was on its way
                continue
            try:
                generation.feed(token_id, finish)
            except Exception:
                self._fail(generation)
                continue
            listeners[generation.listener] = None
            if before_ns := generation.last_token_ns:
                gaps[before_ns] = gaps.get(before_ns, 0) + 1
            else:
                self._metrics.observe_first_token(generation, now_ns)
            generation.last_token_ns = now_ns
            if generation.finish_reason is not None:
                self._end(generation, finish, now_ns)
        # nearly all of a step's requests had their last token in one step too
        for before_ns, count in gaps.items():
            self._metrics.observe_gap(now_ns - before_ns, count)
        return listeners

    def _distribute(self, message: Tokens) -> None:
        """Each run of one request's records goes to its generation, before the tokens that they belong to."""
        records = np.frombuffer(message.logprobs, LOGPROB)
        request_ids = np.frombuffer(message.logprob_request_ids, "<u8")
        starts = [0, *(np.flatnonzero(request_ids[1:] != request_ids[:-1]) + 1).tolist()]
        owners = request_ids[starts].tolist()
        for request_id, start, end in zip(owners, starts, [*starts[1:], len(records)], strict=True):
            generation = self._live.get(request_id)
            if generation is not None and generation.scores is not None:
                generation.scores.add(records[start:end])

    def _fail(self, generation: Generation) -> None:
        """After an exception: our bug, and one request's; the others of this step go on."""
        logger.exception("request %d failed", generation.request_id)
        if self._live.pop(generation.request_id, None) is not None:
            self._abort(generation.request_id)
            self._metrics.observe_end(generation, "error", self._clock_ns())
        if not generation.ended:
            generation.fail(InternalError("internal error"))

    def _end(self, generation: Generation, finish: int, now_ns: int) -> None:
        """It has its finish reason."""
        assert generation.finish_reason is not None
        self._drop(generation.request_id)
        self._metrics.observe_end(generation, generation.finish_reason, now_ns)
        if finish == Finish.NONE:  # a stop string: the engine does not know
            self._abort(generation.request_id)
