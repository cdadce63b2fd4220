"""The coordinator's link to the grammar process: requests wait here until their grammar is compiled, and what is
confirmed of their output goes there.

A request is known by a handle. The rules that make the masks safe (`shm.grammar_masks`):

- `Bind` is sent once every step before the one that admits the request is confirmed: no step in flight reads the
  slot's place for its former owner any more.
- A preempted request's handle is bound to nowhere before anything else can be bound to its slot; its late tokens still
  go to its matcher.
- When the process dies its matchers die with it. Another gets the grammars with the output so far; until it has them,
  rows that need a mask wait, and others go on.
"""

import logging
from collections import deque
from collections.abc import Iterable
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import zmq
from msgspec import Struct

from albireo.coordinator.request import Request, State
from albireo.messages import (
    Advance,
    Bind,
    Broken,
    Compile,
    Compiled,
    Forget,
    Grammar,
    GrammarUp,
    Refused,
    ToGrammar,
    encode,
    from_grammar_decoder,
)

log = logging.getLogger(__name__)

DOWN = "the process that serves structured output has died"
STUCK = "the grammar found no token that may come next, or none within its bounds: simplify it"
"""Of a grammar that ends in mid-output: it contradicts itself there, or its fuel is used up."""


class Compilation(Struct, frozen=True):
    """News of a request whose grammar was being compiled, or had been."""

    request: Request
    problem: str | None
    """None: it can run."""
    is_clients: bool = True
    """Whether the problem is the client's doing; else it can be served by the process that takes the place."""
    field: str = ""


class Grammars(Protocol):
    """What the coordinator asks of it."""

    refusal: str | None
    """Why no grammar is taken, or None."""

    def submit(self, request: Request, grammar: Grammar) -> None:
        """Begins to compile; `receive` has the outcome."""

    def receive(self) -> list[Compilation]:
        """What has become of requests since the last call."""

    def planned(self, step: int, changes: Iterable[tuple[Request, int, int]]) -> None:
        """Step `step` is planned; `changes`: requests with the slot that they entered, or -1, and its generation."""

    def confirmed(self, step: int, tokens: Iterable[tuple[Request, int]]) -> None:
        """Step `step` is confirmed, and these are the constrained requests' tokens, without those that end one."""

    def forget(self, requests: Iterable[Request]) -> None:
        """These have ended."""

    def lost(self, pid: int, restarts: bool) -> list[Compilation]:
        """The process `pid` has died; returns what becomes of its requests."""


class NoGrammars:
    """For an engine without that process."""

    refusal: str | None = "structured output is not supported by this engine"

    def submit(self, request: Request, grammar: Grammar) -> None:
        raise AssertionError("it was to be refused")

    def receive(self) -> list[Compilation]:
        return []

    def planned(self, step: int, changes: Iterable[tuple[Request, int, int]]) -> None:
        """There are none."""

    def confirmed(self, step: int, tokens: Iterable[tuple[Request, int]]) -> None:
        """There are none."""

    def forget(self, requests: Iterable[Request]) -> None:
        """There are none."""

    def lost(self, pid: int, restarts: bool) -> list[Compilation]:
        return []


class Sequences(Protocol):
    """What the link asks of the scheduler."""

    def outputs(self, request: Request) -> npt.NDArray[np.int32]:
        """Its confirmed output tokens."""

    def bind_to(self, request: Request) -> tuple[int, int, int] | None:
        """Slot, generation and number of confirmed tokens of a request that runs; None for others."""


class Constrained(Struct):
    """A request and what it asked for."""

    request: Request
    grammar: Grammar
    num_told: int = 0
    """Output tokens that the process knows from `Compile`."""


class GrammarLink:
    """Over a ROUTER socket, to which the process, and whoever takes its place, connects."""

    def __init__(self, socket: "zmq.Socket[bytes]", sequences: Sequences) -> None:
        self._socket = socket
        self._sequences = sequences
        self._decoder = from_grammar_decoder()
        self._identity: bytes | None = None
        """The process's, once it has said that it is there."""
        self._pid = 0
        self._dead_pid = 0
        """Of the one that was lost last: what it said in its last moments can arrive after the news."""
        self._held: list[ToGrammar] = []
        """For a process that is still starting."""
        self.refusal: str | None = None
        self._next_handle = 1
        self._compiling: dict[int, Constrained] = {}
        self._compiled: dict[int, Constrained] = {}
        self._to_bind: deque[tuple[int, Bind]] = deque()
        """And the step that admits the request."""
        self._num_confirmed = 0

    def submit(self, request: Request, grammar: Grammar) -> None:
        request.grammar_handle = handle = self._next_handle
        self._next_handle += 1
        self._compile(handle, Constrained(request, grammar))

    def receive(self) -> list[Compilation]:
        news: list[Compilation] = []
        while True:
            try:
                identity, data = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return news
            try:
                message = self._decoder.decode(data)
            except msgspec.MsgspecError as error:
                log.error("dropped a message of the grammar process that is none of ours: %s", error)
                continue
            match message:
                case GrammarUp():
                    news += self._greet(identity, message.pid, message.problem)
                case Compiled():
                    news += self._compiled_one(message.handle)
                case Refused():
                    news += self._refused(message.handle, message.message)
                case Broken():
                    news += self._broken(message.handle, message.message)

    def planned(self, step: int, changes: Iterable[tuple[Request, int, int]]) -> None:
        for request, slot, generation in changes:
            handle = request.grammar_handle
            if slot < 0:
                self._to_bind = deque(each for each in self._to_bind if each[1].handle != handle)
                self._send(Bind(handle, -1, 0, 0))
            else:
                self._to_bind.append((step, Bind(handle, slot, generation, request.tokens.size)))
        self._bind_those_alone()

    def confirmed(self, step: int, tokens: Iterable[tuple[Request, int]]) -> None:
        self._num_confirmed = step
        rows = list(tokens)
        if self._compiling:  # by another process: it is told when it has the grammar
            rows = [(request, token) for request, token in rows if request.grammar_handle not in self._compiling]
        if rows:
            handles = np.array([request.grammar_handle for request, _ in rows], "<u8").tobytes()
            self._send(Advance(step, handles, np.array([token for _, token in rows], "<i4").tobytes()))
        self._bind_those_alone()

    def forget(self, requests: Iterable[Request]) -> None:
        handles = [request.grammar_handle for request in requests]
        for handle in handles:
            self._compiling.pop(handle, None)
            self._compiled.pop(handle, None)
        if handles:
            self._to_bind = deque(each for each in self._to_bind if each[1].handle not in handles)
            self._send(Forget(handles))

    def lost(self, pid: int, restarts: bool) -> list[Compilation]:
        self._dead_pid = pid
        if self._identity is not None and pid != self._pid:  # another has taken its place already
            return []
        self._identity = None
        self._held.clear()
        self._to_bind.clear()
        self.refusal = None if restarts else DOWN
        entries = self._compiling | self._compiled
        self._compiling, self._compiled = {}, {}
        if not restarts:
            return [Compilation(entry.request, DOWN, is_clients=False) for entry in entries.values()]
        for handle, entry in entries.items():
            self._compile(handle, entry)
        return []

    def _compile(self, handle: int, entry: Constrained) -> None:
        """Asks for it, with what there is of the output."""
        outputs, grammar = self._sequences.outputs(entry.request), entry.grammar
        entry.num_told = outputs.size
        self._compiling[handle] = entry
        given = grammar.kind, grammar.source, grammar.after, grammar.opened_by
        self._send(Compile(handle, *given, outputs.astype("<i4").tobytes()))

    def _bind_those_alone(self) -> None:
        """Sends what waited for the steps before it."""
        while self._to_bind and self._to_bind[0][0] <= self._num_confirmed + 1:
            self._send(self._to_bind.popleft()[1])

    def _greet(self, identity: bytes, pid: int, problem: str | None) -> list[Compilation]:
        if pid == self._dead_pid:
            return []
        # whatever it did not hear of it has lost
        news = self.lost(self._pid, restarts=True) if self._identity is not None else []
        self._identity, self._pid, self.refusal = identity, pid, problem
        if problem is not None:
            log.warning("structured output is not available: %s", problem)
            news += [
                Compilation(entry.request, problem, field=entry.grammar.field) for entry in self._compiling.values()
            ]
            self._compiling.clear()
            self._held.clear()
        held, self._held = self._held, []
        for message in held:
            self._send(message)
        return news

    def _compiled_one(self, handle: int) -> list[Compilation]:
        entry = self._compiling.pop(handle, None)
        if entry is None:  # it was aborted meanwhile
            return []
        self._compiled[handle] = entry
        if entry.request.state is State.NEW:
            return [Compilation(entry.request, None)]
        self._catch_up(handle, entry)
        return []

    def _catch_up(self, handle: int, entry: Constrained) -> None:
        """Of a request under way: the tokens since the process was told, and where its masks belong."""
        handles = np.array([handle], "<u8").tobytes()
        for token in self._sequences.outputs(entry.request)[entry.num_told :].tolist():
            self._send(Advance(self._num_confirmed, handles, np.array([token], "<i4").tobytes()))
        is_to_be_bound = any(bind.handle == handle for _, bind in self._to_bind)
        if not is_to_be_bound and (place := self._sequences.bind_to(entry.request)) is not None:
            self._send(Bind(handle, *place))

    def _refused(self, handle: int, message: str) -> list[Compilation]:
        entry = self._compiling.pop(handle, None)
        return [] if entry is None else [Compilation(entry.request, message, field=entry.grammar.field)]

    def _broken(self, handle: int, message: str) -> list[Compilation]:
        entry = self._compiled.pop(handle, None)
        if entry is None:
            return []
        log.warning("request %d: its grammar cannot go on: %s", entry.request.request_id, message)
        return [Compilation(entry.request, STUCK, field=entry.grammar.field)]

    def _send(self, message: ToGrammar) -> None:
        if self._identity is None:
            self._held.append(message)
        else:
            self._socket.send_multipart([self._identity, encode(message)])
