"""The one place that talks to a coordinator: requests go out, and each step's rows come back as one message."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import zmq

from albireo.errors import InternalError, QueueTimeoutError, RequestError, UnavailableError
from albireo.frontend.generation import Generation, Listener
from albireo.frontend.request_metrics import RequestMetrics
from albireo.frontend.socket_reader import SocketReader
from albireo.frontend.waiting import WaitingGenerations
from albireo.messages import (
    Abort,
    Crashed,
    Expired,
    Finish,
    Grammar,
    Rejected,
    Resumed,
    SamplingParams,
    Submit,
    Tokens,
    encode,
    frontend_decoder,
)
from albireo.shm.flight import Part, Recorder
from albireo.shm.layout import LOGPROB
from albireo.shm.routes import SharedLoad

logger = logging.getLogger(__name__)


class EngineClient:
    """Live generations of one replica by request id. An id is known from `submit` until its one terminal event or its
    abort.

    Lives on the event loop's thread. A coordinator may die: the next one, `connect`ed to, gets all live generations
    with what they have so far, and they go on; so does the coordinator of another replica that `adopt`s them. The
    socket's high-water marks are off: a request sends two messages at most, and its tokens must not be dropped; the
    client's own limits bound both.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        metrics: RequestMetrics,
        recorder: Recorder,
        clock_ns: Callable[[], int],
        on_failure: Callable[[Exception], None],
        numbers: Iterator[int],
        stats: npt.NDArray[Any],
        load: SharedLoad,
    ) -> None:
        """`numbers`: of requests, none twice in this frontend. `stats`: ENGINE_STATS[1] of the replica. `load`: of the
        replica, as the frontends tell it each other."""
        self._loop = loop
        self._metrics = metrics
        self._recorder = recorder
        self._clock_ns = clock_ns
        self._decoder = frontend_decoder()
        self._numbers = numbers
        self._stats = stats
        self._load = load
        self._live: dict[int, Generation] = {}
        self._aborted: list[int] = []
        self._waiting = WaitingGenerations()
        """Live generations of which the engine has computed nothing yet."""
        self._num_prompt_tokens = 0
        """Of live generations without a token, those that the prefix cache does not have: first as far as the router
        knew, then as the coordinator says."""
        self.is_up = False
        """The replica computes."""
        self.goes_elsewhere: Callable[[Generation], bool] = lambda generation: False
        """Whether another replica takes one that this one has given up, but could have served a while ago or later."""
        self._on_failure = on_failure
        self._reader: SocketReader | None = None
        """None while there is no coordinator."""

    @property
    def num_live(self) -> int:
        return len(self._live)

    @property
    def num_waiting(self) -> int:
        """Live generations of which the engine has computed nothing yet."""
        return len(self._waiting)

    def last_waiting_behind(self, priority: int) -> Generation | None:
        """Who gives way to a request of that priority when the queue is full."""
        return self._waiting.last_behind(priority)

    @property
    def num_sequences(self) -> int:
        """Waiting and running, of all frontends: as many as were there at the last step, if not more."""
        stats = self._stats[0]
        return max(self._load.num_sequences, int(stats["num_running"]) + int(stats["num_waiting"]))

    @property
    def num_prompt_tokens(self) -> int:
        """Of all frontends' prompts, to be computed yet."""
        return self._load.num_prompt_tokens

    @property
    def num_waiting_of_all(self) -> int:
        """Other frontends' too, as of the last step."""
        return int(self._stats[0]["num_waiting"])

    @property
    def serves_grammars(self) -> bool:
        """False while its grammar process is not started again for a while."""
        return not self._stats[0]["grammars_are_down"]

    @property
    def is_connected(self) -> bool:
        return self._reader is not None

    def connect(self, socket: "zmq.Socket[bytes]") -> None:
        """A coordinator is there, which knows of no request. What the one before it had to say is not heard any more,
        and the socket to it can be closed."""
        if self._reader is not None:
            self._reader.close()
        self._reader = SocketReader(self._loop, socket, self._on_frame, self._on_failure, self._clock_ns)
        if self._live:
            logger.warning("another coordinator: %d requests go on with it", len(self._live))
        for generation in self._live.values():
            self._send(encode(_resumption(generation)))

    def leave(self, has_place: Callable[[Generation], bool]) -> list[Generation]:
        """The live generations that go on elsewhere: all that have a place there, but those that may be what kills
        replicas. The others wait."""
        generations = [each for each in self._live.values() if has_place(each) and each.may_leave()]
        for generation in generations:
            self._drop(generation.request_id)
            self._abort(generation.request_id)
        return generations

    def release(self, generation: Generation) -> None:
        """It goes on elsewhere; the coordinator has it no more."""
        self._drop(generation.request_id)

    def adopt(self, generation: Generation, num_cached_tokens: int) -> None:
        """One that has left another. It gets another number: what is still said of the old one is not of this."""
        assert generation.submission is not None, "a live generation was submitted"
        request_id = generation.request_id = next(self._numbers)
        generation.submission = msgspec.structs.replace(generation.submission, request_id=request_id)
        generation.num_crashes = 0  # two replicas may die at once, and it have killed neither
        self._keep(generation, num_cached_tokens)
        if self._reader is not None:  # else the coordinator gets it when it comes
            self._send(encode(_resumption(generation)))

    def submit(
        self,
        generation: Generation,
        tokens: bytes,
        sampling: SamplingParams,
        priority: int,
        cache_salt: str,
        grammar: Grammar | None = None,
        leader: Generation | None = None,
        num_cached_tokens: int = 0,
    ) -> None:
        """Hands a checked request to the coordinator. `tokens`: its prompt, int32[n]. `leader`: the first of its
        prompt's samples, if there are several. `num_cached_tokens`: what the replica is expected to have of it."""
        generation.request_id = request_id = next(self._numbers)
        generation.submitted_ns = self._clock_ns()
        group = 0 if leader is None else leader.request_id
        generation.submission = Submit(
            request_id, tokens, sampling, priority, cache_salt, grammar, group, arrival_ns=generation.submitted_ns
        )
        self._send(encode(generation.submission))
        self._keep(generation, num_cached_tokens)

    def _keep(self, generation: Generation, num_cached_tokens: int) -> None:
        self._live[generation.request_id] = generation
        if not generation.admitted_ns:
            self._waiting.add(generation)
        if not generation.num_tokens:
            generation.num_to_compute = generation.num_prompt_tokens - num_cached_tokens
            self._num_prompt_tokens += generation.num_to_compute
        self._load.say(len(self._live), self._num_prompt_tokens)

    def _drop(self, request_id: int) -> Generation | None:
        """Its terminal event or abort is here."""
        generation = self._live.pop(request_id, None)
        if generation is not None:
            self._waiting.discard(generation)
            self._has_computed(generation, generation.num_to_compute)
        return generation

    def _has_computed(self, generation: Generation, num_tokens: int) -> None:
        """So many tokens of its prompt need not be computed any more; fewer than none where more must be than was
        expected."""
        generation.num_to_compute -= num_tokens
        self._num_prompt_tokens -= num_tokens
        self._load.say(len(self._live), self._num_prompt_tokens)

    def abort(self, generations: Iterable[Generation]) -> None:
        """Forgets those that have not ended, and tells the coordinator. Nothing more is heard of them."""
        for generation in generations:
            if self._drop(generation.request_id) is not None:
                self._abort(generation.request_id)
                self._metrics.observe_end(generation, "abort", self._clock_ns())

    def fail_all(self, error: RequestError) -> None:
        """Ends every live generation with `error`: the server stops."""
        while self._live:
            self.fail(next(iter(self._live.values())), error)

    def fail(self, generation: Generation, error: RequestError) -> None:
        """Ends a live generation with `error`, and tells the coordinator."""
        self._drop(generation.request_id)
        self._abort(generation.request_id)
        generation.fail(error)

    def close(self) -> None:
        """Sends the aborts that are left and stops listening."""
        self._flush_aborts()
        if self._reader is not None:
            self._reader.close()

    def _send(self, frame: bytes) -> None:
        if self._reader is None:
            raise UnavailableError("the engine is starting")
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
        if self._aborted and self._reader is not None:
            self._send(encode(Abort(self._aborted)))
        self._aborted = []

    def _on_frame(self, frame: bytes, begin_ns: int) -> None:
        message = self._decoder.decode(frame)
        if isinstance(message, Tokens):
            self._on_tokens(message, begin_ns)
        elif isinstance(message, Rejected):
            self._on_end(message.request_id, RequestError(message.message, field=message.field or None))
        elif isinstance(message, Crashed):
            for request_id, num_crashes in message.num_crashes.items():
                if request_id in self._live:
                    self._live[request_id].num_crashes = num_crashes
        elif isinstance(message, Expired):
            self._on_end(message.request_id, QueueTimeoutError(message.message), "timeout")
        elif message.is_transient:
            generation = self._live.get(message.request_id)
            if generation is None or not self.goes_elsewhere(generation):
                self._on_end(message.request_id, UnavailableError(message.message))
        else:
            number = message.request_id
            logger.error("request %d failed: %s", number, message.message)
            self._on_end(number, InternalError(f"{message.message}; the server's log has more under request {number}"))

    def _on_end(self, request_id: int, error: RequestError, reason: str = "error") -> None:
        generation = self._drop(request_id)
        if generation is None:
            return
        if generation.admitted_ns or error.status >= 500:  # else it was refused, and never was one of the engine's
            self._metrics.observe_end(generation, reason, self._clock_ns())
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
                generation.listener.has_started = True
                self._waiting.discard(generation)
                generation.num_cached_tokens = admitted.num_cached_tokens
                to_compute = generation.num_prompt_tokens - admitted.num_cached_tokens
                self._has_computed(generation, generation.num_to_compute - to_compute)
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
                self._has_computed(generation, generation.num_to_compute)
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
        if self._drop(generation.request_id) is not None:
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


def _resumption(generation: Generation) -> Submit:
    """The request again, from where it is."""
    submission, history = generation.submission, generation.history
    assert submission is not None, "a live generation was submitted"
    submission = msgspec.structs.replace(submission, num_crashes=generation.num_crashes)
    if not generation.admitted_ns:
        return submission
    num_scored = 0 if generation.scores is None else generation.scores.num_prompt_scored
    return msgspec.structs.replace(
        submission,
        prompt_token_ids=submission.prompt_token_ids + np.array(history, "<i4").tobytes(),
        resumed=Resumed(len(history), num_scored),
    )
