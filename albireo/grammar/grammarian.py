"""The grammar actor: one `step` is receive, compile or match, answer.

It hears of grammars and of confirmed tokens from the coordinator, and writes masks into shared memory, where the
devices look for them between a step's forward pass and its sampling.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable

import llguidance
import msgspec
import numpy as np
import zmq

from albireo.grammar.compile_pool import CompilePool, Job
from albireo.grammar.compiler import CompiledGrammars
from albireo.grammar.matchers import Matchers
from albireo.messages import (
    Advance,
    Bind,
    Broken,
    Compile,
    Compiled,
    Forget,
    FromGrammar,
    Refused,
    ToGrammar,
    encode,
    grammar_decoder,
)
from albireo.shm.flight import Part, Recorder

log = logging.getLogger(__name__)


class Grammarian:
    """State and step of the process. Socket, pool, masks, recorder and clock are handed in."""

    def __init__(
        self,
        coordinator: "zmq.Socket[bytes]",
        pool: CompilePool,
        matchers: Matchers,
        recorder: Recorder,
        clock_ns: Callable[[], int],
    ) -> None:
        self._coordinator = coordinator
        self._pool = pool
        self._matchers = matchers
        self._recorder = recorder
        self._clock_ns = clock_ns
        self._decoder = grammar_decoder()
        self._compiled = CompiledGrammars()
        self._awaited: defaultdict[Job, dict[int, tuple[Compile, int]]] = defaultdict(dict)
        """Who waits for a job, by handle, and when each came."""

    def step(self) -> None:
        """Takes what has arrived and what has been compiled. Never blocks. Raises StuckError."""
        while (heard := self._receive()) is not None:
            self._handle(heard)
        for done in self._pool.collect():
            waiting = self._awaited.pop(done.job, {})
            if done.matcher is not None:
                self._compiled.put(done.job.kind, done.job.source, done.matcher)
            for handle, (message, begin_ns) in waiting.items():
                self._recorder.record(Part.COMPILE, 0, begin_ns, self._clock_ns(), 1)
                if done.matcher is None:
                    self._send(Refused(handle, done.problem))
                else:
                    self._begin(message, done.matcher.deep_copy())

    def _receive(self) -> ToGrammar | None:
        try:
            return self._decoder.decode(self._coordinator.recv(zmq.NOBLOCK))
        except zmq.Again:
            return None
        except msgspec.MsgspecError as error:
            log.error("dropped a message that is none of ours: %s", error)
            return self._receive()

    def _handle(self, message: ToGrammar) -> None:
        match message:
            case Compile():
                self._compile(message)
            case Bind():
                self._tell_broken(
                    self._matchers.bind(message.handle, message.slot, message.generation, message.position).items()
                )
            case Advance():
                self._advance(message)
            case Forget():
                self._forget(message.handles)

    def _forget(self, handles: list[int]) -> None:
        self._matchers.forget(handles)
        for job, waiting in list(self._awaited.items()):
            for handle in handles:
                waiting.pop(handle, None)
            if not waiting:
                del self._awaited[job]
                self._pool.cancel(job)

    def _compile(self, message: Compile) -> None:
        matcher = self._compiled.get(message.kind, message.source)
        if matcher is not None:
            self._begin(message, matcher)
            return
        job = Job(message.kind, message.source)
        self._awaited[job][message.handle] = (message, self._clock_ns())
        self._pool.submit(job)

    def _begin(self, message: Compile, matcher: llguidance.LLMatcher) -> None:
        """From the output's beginning, or from where another process had brought it."""
        handle = message.handle
        self._matchers.add(handle, matcher, message.after, message.opened_by)
        self._send(Compiled(handle))
        for token in np.frombuffer(message.output_token_ids, "<i4").tolist():
            if broken := self._matchers.advance([handle], [token]):
                self._tell_broken(broken.items())
                return

    def _advance(self, message: Advance) -> None:
        handles = np.frombuffer(message.handles, "<u8").tolist()
        self._recorder.start(message.step, len(handles))
        broken = self._matchers.advance(handles, np.frombuffer(message.token_ids, "<i4").tolist())
        self._recorder.mark(Part.MASK)
        self._tell_broken(broken.items())

    def _tell_broken(self, broken: Iterable[tuple[int, str]]) -> None:
        for handle, problem in broken:
            self._matchers.forget([handle])
            self._send(Broken(handle, problem))

    def _send(self, message: FromGrammar) -> None:
        self._coordinator.send(encode(message))
