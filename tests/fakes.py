"""Stand-ins for the other processes: they speak messages.py over the real sockets."""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import zmq

from albireo import sockets
from albireo.messages import (
    Abort,
    Admitted,
    EngineReady,
    Finish,
    FromSupervisor,
    Ready,
    Rejected,
    Stop,
    Submit,
    Tokens,
    ToSupervisor,
    coordinator_decoder,
    encode,
    supervisor_decoder,
)
from albireo.shm.layout import LOGPROB

Row = tuple[int, Finish]
Reply = Callable[[Submit], Iterable[Row] | Rejected]
"""The rows that a request gets, one per step; an endless one is cut at its max_tokens."""


def tokens_reply(token_ids: Iterable[int], finish: Finish = Finish.EOS, eos: int = 0) -> Reply:
    """Each of these tokens, then an end-of-sequence token; or the last of them ends it with another `finish`."""
    tokens = list(token_ids)

    def reply(submit: Submit) -> Iterator[Row]:
        if finish == Finish.EOS:
            yield from ((token, Finish.NONE) for token in tokens)
            yield eos, Finish.EOS
        else:
            yield from ((token, Finish.NONE) for token in tokens[:-1])
            yield tokens[-1], finish

    return reply


def endless_reply(token_ids: Iterable[int]) -> Reply:
    """These tokens over and over, until max_tokens."""
    tokens = list(token_ids)
    return lambda submit: zip(itertools.cycle(tokens), itertools.repeat(Finish.NONE), strict=False)


def logprob_records(positions: Iterable[int], tokens: Iterable[int], num_top: int) -> npt.NDArray[Any]:
    """What the fake model gives each token: LOGPROB[n].

    The token at position p has rank 1 + p % 3. The token of rank r has the log-probability -r / 4 and, where it is not
    the one in question, the id 300 + r."""
    records = np.zeros(len(pairs := list(zip(positions, tokens, strict=True))), LOGPROB)
    for record, (position, token) in zip(records, pairs, strict=True):
        rank = 1 + position % 3
        record["position"], record["token"], record["rank"] = position, token, rank
        record["logprob"] = -rank / 4
        record["num_top"] = num_top
        record["top_ids"][:num_top] = [token if r == rank else 300 + r for r in range(1, num_top + 1)]
        record["top_logprobs"][:num_top] = [-r / 4 for r in range(1, num_top + 1)]
    return records


@dataclass
class _Sequence:
    identity: bytes
    submit: Submit
    rows: Iterator[Row]
    prompt_parts: list[range]
    """Positions of the prompt that are scored in the steps before its first token, and with it."""
    num_tokens: int = 0

    def __post_init__(self) -> None:
        self.prompt = np.frombuffer(self.submit.prompt_token_ids, "<i4").tolist()
        self.sampling = self.submit.sampling

    def score_prompt(self) -> npt.NDArray[Any]:
        """The next part, if the prompt's log-probabilities are wanted."""
        positions = self.prompt_parts.pop(0) if self.sampling.prompt_logprobs >= 0 else range(0)
        tokens = [self.prompt[position] for position in positions]
        return logprob_records(positions, tokens, self.sampling.prompt_logprobs)

    def score(self, token: int) -> npt.NDArray[Any]:
        """The record of the newest token, if it is wanted."""
        position = len(self.prompt) + self.num_tokens - 1
        n = self.sampling.logprobs
        return logprob_records([position], [token], n) if n >= 0 and token >= 0 else np.empty(0, LOGPROB)


@dataclass
class FakeCoordinator:
    """A coordinator's ROUTER on a thread: each step gives every live request its next row, in one `Tokens` message
    per frontend. Use as a context manager."""

    run_dir: str
    reply: Reply
    step_s: float = 0.0
    """Pause between two steps."""
    num_cached_tokens: int = 0
    prompt_parts: Callable[[int], list[range]] = lambda length: [range(1, length)]
    """A prompt's positions that are scored in one step each, by its length; the last come with the first token."""
    submits: list[Submit] = field(default_factory=list)
    aborted: list[int] = field(default_factory=list)
    live: dict[tuple[bytes, int], _Sequence] = field(default_factory=dict)
    paused: threading.Event = field(default_factory=threading.Event)
    """While set, no step is made."""

    def __enter__(self) -> Self:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = sockets.open_socket(self._context, zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.bind(sockets.coordinator_address(self.run_dir))
        self._decoder = coordinator_decoder()
        self._stop = threading.Event()
        self._step = 0
        self._thread = threading.Thread(target=self._run, name="fake-coordinator")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()
        self._context.term()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Waits until this fake's state is as expected."""
        wait_for(condition, timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            busy = bool(self.live) and not self.paused.is_set()
            while self._socket.poll(0 if busy else 2):
                self._hear(*self._socket.recv_multipart())
            if busy:
                self._make_step()
                time.sleep(self.step_s)

    def _hear(self, identity: bytes, data: bytes) -> None:
        message = self._decoder.decode(data)
        if isinstance(message, Abort):
            self.aborted += message.request_ids
            for request_id in message.request_ids:
                self.live.pop((identity, request_id), None)
            return
        self.submits.append(message)
        rows = self.reply(message)
        if isinstance(rows, Rejected):
            answer = Rejected(message.request_id, rows.field, rows.message)
            self._socket.send_multipart([identity, encode(answer)])
        else:
            parts = self.prompt_parts(len(message.prompt_token_ids) // 4)
            self.live[identity, message.request_id] = _Sequence(identity, message, iter(rows), parts)

    def _make_step(self) -> None:
        self._step += 1
        outputs: dict[bytes, _StepOutput] = {}
        for key, sequence in list(self.live.items()):
            output = outputs.setdefault(sequence.identity, _StepOutput())
            request_id = sequence.submit.request_id
            if sequence.num_tokens == 0:
                output.score(request_id, sequence.score_prompt())
                if sequence.sampling.prompt_logprobs >= 0 and sequence.prompt_parts:
                    continue
                output.admitted.append(Admitted(request_id, self.num_cached_tokens))
            token, finish = next(sequence.rows)
            sequence.num_tokens += 1
            output.score(request_id, sequence.score(token))
            if finish == Finish.NONE and sequence.num_tokens == sequence.sampling.max_tokens:
                finish = Finish.LENGTH
            if finish != Finish.NONE:
                del self.live[key]
            output.rows.append((request_id, token, finish))
        for identity, output in outputs.items():
            self._socket.send_multipart([identity, encode(output.message(self._step))])


@dataclass
class _StepOutput:
    """What one step has for one frontend."""

    rows: list[tuple[int, int, int]] = field(default_factory=list)
    admitted: list[Admitted] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    records: bytes = b""

    def score(self, request_id: int, records: npt.NDArray[Any]) -> None:
        self.scored += [request_id] * len(records)
        self.records += records.tobytes()

    def message(self, step: int) -> Tokens:
        return Tokens(
            step=step,
            request_ids=np.array([row[0] for row in self.rows], "<u8").tobytes(),
            token_ids=np.array([row[1] for row in self.rows], "<i4").tobytes(),
            finish=np.array([row[2] for row in self.rows], "u1").tobytes(),
            admitted=self.admitted,
            logprob_request_ids=np.array(self.scored, "<u8").tobytes(),
            logprobs=self.records,
        )


class FakeSupervisor:
    """A supervisor's ROUTER: says EngineReady and Stop, hears what children say. Used by one thread."""

    def __init__(self, run_dir: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = sockets.open_socket(self._context, zmq.ROUTER)
        self._socket.bind(sockets.control_address(run_dir))
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._decoder = supervisor_decoder()
        self.heard: list[ToSupervisor] = []

    def tell(self, name: str, message: FromSupervisor, timeout_s: float = 30.0) -> None:
        """Sends to a child as soon as it is connected."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._socket.send_multipart([name.encode(), encode(message)])
                return
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def engine_ready(self, name: str, num_kv_blocks: int = 1000) -> None:
        """Tells a child that the engine is ready and waits until it serves."""
        self.tell(name, EngineReady(num_kv_blocks))
        wait_for(lambda: self.hears(Ready), 10.0)

    def stop(self, name: str) -> None:
        self.tell(name, Stop())

    def hears(self, kind: type[ToSupervisor]) -> bool:
        """Whether a message of this kind has come."""
        while self._socket.poll(0):
            self.heard.append(self._decoder.decode(self._socket.recv_multipart()[1]))
        return any(isinstance(message, kind) for message in self.heard)

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Waits until `condition()`; AssertionError after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.005)
