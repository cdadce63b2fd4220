"""The coordinator's link to the grammar process: when what is said, and what happens when the process dies."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import zmq

from albireo import sockets
from albireo.coordinator.grammars import STUCK, Compilation, GrammarLink
from albireo.coordinator.request import Request, State
from albireo.messages import (
    Advance,
    Bind,
    Broken,
    Compile,
    Compiled,
    Forget,
    FromGrammar,
    Grammar,
    GrammarUp,
    Refused,
    SamplingParams,
    ToGrammar,
    encode,
    grammar_decoder,
)

GRAMMAR = Grammar("regex", "ab", "structured_outputs.regex")


class Link:
    """A link, and processes that come and go."""

    def __init__(self, run_dir: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = sockets.open_socket(self._context, zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 0)
        self._address = f"ipc://{run_dir}/grammar.sock"
        self._router.bind(self._address)
        self.outputs_of: dict[int, list[int]] = {}
        """By request id: what of its output is confirmed."""
        self.places: dict[int, tuple[int, int, int]] = {}
        self.link = GrammarLink(self._router, self)
        self._processes: dict[int, zmq.Socket[bytes]] = {}
        self._decoder = grammar_decoder()

    def outputs(self, request: Request) -> npt.NDArray[np.int32]:
        return np.array(self.outputs_of.get(request.request_id, []), np.int32)

    def bind_to(self, request: Request) -> tuple[int, int, int] | None:
        return self.places.get(request.request_id)

    def close(self) -> None:
        for socket in (self._router, *self._processes.values()):
            socket.close()
        self._context.term()

    def start(self, pid: int, problem: str | None = None) -> list[Compilation]:
        """A process comes up; returns the news."""
        socket = sockets.open_socket(self._context, zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, f"grammar-0-{pid}".encode())
        socket.connect(self._address)
        self._processes[pid] = socket
        return self.say(pid, GrammarUp(pid, problem))

    def say(self, pid: int, message: FromGrammar) -> list[Compilation]:
        self._processes[pid].send(encode(message))
        assert self._router.poll(10_000)
        return self.link.receive()

    def heard(self, pid: int, count: int) -> list[ToGrammar]:
        """The next `count` messages, and no more."""
        socket = self._processes[pid]
        messages: list[ToGrammar] = []
        while len(messages) < count and socket.poll(10_000):
            messages.append(self._decoder.decode(socket.recv()))
        assert len(messages) == count and not socket.poll(20)
        return messages

    def submit(self, number: int) -> Request:
        tokens = np.arange(5, dtype=np.int32)
        request = Request(0, number, SamplingParams(max_tokens=5, seed=0), tokens, 10, 0, "", number)
        self.link.submit(request, GRAMMAR)
        return request

    def running(self, pid: int, number: int) -> Request:
        """A request whose grammar is compiled."""
        request = self.submit(number)
        assert self.say(pid, Compiled(request.grammar_handle)) == [Compilation(request, None)]
        request.state = State.RUNNING
        return request


@pytest.fixture
def link(tmp_path: object) -> Iterator[Link]:
    link = Link(str(tmp_path))
    yield link
    link.close()


def test_what_is_asked_for_before_the_process_is_there_is_said_when_it_comes(link: Link) -> None:
    request = link.submit(1)
    assert link.start(100) == []
    assert link.heard(100, 1) == [Compile(request.grammar_handle, "regex", "ab")]
    assert link.say(100, Compiled(request.grammar_handle)) == [Compilation(request, None)]


def test_a_refusal_is_the_clients_and_names_its_field(link: Link) -> None:
    link.start(100)
    request = link.submit(1)
    news = link.say(100, Refused(request.grammar_handle, "no such rule"))
    assert news == [Compilation(request, "no such rule", True, "structured_outputs.regex")]


def test_a_grammar_that_cannot_go_on_is_the_clients_and_the_librarys_words_go_to_the_log(
    link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    link.start(100)
    request = link.running(100, 1)
    (news,) = link.say(100, Broken(request.grammar_handle, "no fuel at /a/path"))
    assert news == Compilation(request, STUCK, True, "structured_outputs.regex")
    assert "no fuel at /a/path" in caplog.text


def test_what_comes_for_a_request_that_has_ended_is_ignored(link: Link) -> None:
    link.start(100)
    first, second, third = link.submit(1), link.submit(2), link.running(100, 3)
    link.link.forget([first, second, third])
    assert link.say(100, Compiled(first.grammar_handle)) == []
    assert link.say(100, Refused(second.grammar_handle, "x")) == []
    assert link.say(100, Broken(third.grammar_handle, "x")) == []
    assert link.heard(100, 4)[-1] == Forget([each.grammar_handle for each in (first, second, third)])


def test_a_slot_is_bound_when_every_step_before_the_admission_is_confirmed(link: Link) -> None:
    link.start(100)
    request = link.running(100, 1)
    link.link.planned(3, [(request, 2, 7)])
    link.link.confirmed(1, [])
    assert link.heard(100, 1) == [Compile(request.grammar_handle, "regex", "ab")]
    link.link.confirmed(2, [])
    assert link.heard(100, 1) == [Bind(request.grammar_handle, 2, 7, 5)]


def test_a_step_without_any_before_it_in_flight_binds_at_once(link: Link) -> None:
    link.start(100)
    request = link.running(100, 1)
    link.link.planned(1, [(request, 0, 1)])
    assert link.heard(100, 2)[-1] == Bind(request.grammar_handle, 0, 1, 5)


def test_a_preempted_request_is_bound_to_nowhere_and_never_again_to_what_it_had_in_mind(link: Link) -> None:
    link.start(100)
    request = link.running(100, 1)
    link.link.planned(3, [(request, 2, 7)])
    link.link.planned(4, [(request, -1, 0)])
    link.link.confirmed(2, [])
    link.link.confirmed(3, [])
    assert link.heard(100, 2)[-1] == Bind(request.grammar_handle, -1, 0, 0)


def test_confirmed_tokens_go_in_one_message_and_a_step_without_any_sends_none(link: Link) -> None:
    link.start(100)
    first, second = link.running(100, 1), link.running(100, 2)
    link.link.confirmed(1, [])
    link.link.confirmed(2, [(second, 44), (first, 33)])
    advance = link.heard(100, 3)[-1]
    assert isinstance(advance, Advance) and advance.step == 2
    assert np.frombuffer(advance.handles, "<u8").tolist() == [second.grammar_handle, first.grammar_handle]
    assert np.frombuffer(advance.token_ids, "<i4").tolist() == [44, 33]


def test_when_the_process_dies_and_no_other_comes_its_requests_end(link: Link) -> None:
    link.start(100)
    link.submit(1), link.running(100, 2)
    ended = link.running(100, 3)
    link.link.forget([ended])
    news = link.link.lost(100, restarts=False)
    assert {each.request.request_id for each in news} == {1, 2}
    assert all(each.problem and not each.is_clients for each in news)
    assert link.link.refusal is not None
    later = link.submit(4)
    assert link.start(200) == []
    assert link.link.refusal is None  # whoever comes serves again
    assert link.heard(200, 1) == [Compile(later.grammar_handle, "regex", "ab")]


def test_another_process_gets_the_grammars_with_the_output_and_the_requests_go_on(link: Link) -> None:
    link.start(100)
    waiting, running = link.submit(1), link.running(100, 2)
    link.outputs_of[2] = [7, 8]
    assert link.link.lost(100, restarts=True) == [] and link.link.refusal is None
    link.outputs_of[2] = [7, 8, 9]  # a step was in flight
    link.link.confirmed(5, [(running, 9)])
    assert link.start(200) == []
    assert link.heard(200, 2) == [
        Compile(waiting.grammar_handle, "regex", "ab"),
        Compile(running.grammar_handle, "regex", "ab", output_token_ids=np.array([7, 8], "<i4").tobytes()),
    ]
    link.places[2] = (3, 1, 8)
    assert link.say(200, Compiled(running.grammar_handle)) == []
    advance, bind = link.heard(200, 2)
    assert isinstance(advance, Advance) and np.frombuffer(advance.token_ids, "<i4").tolist() == [9]
    assert bind == Bind(running.grammar_handle, 3, 1, 8)
    assert link.say(200, Compiled(waiting.grammar_handle)) == [Compilation(waiting, None)]


def test_one_that_comes_before_the_death_of_the_last_is_heard_of_takes_its_place(link: Link) -> None:
    link.start(100)
    request = link.running(100, 1)
    assert link.start(200) == []
    assert link.link.lost(100, restarts=True) == []
    assert link.heard(200, 1) == [Compile(request.grammar_handle, "regex", "ab")]


def test_the_last_words_of_one_that_died_revive_nobody(link: Link) -> None:
    assert link.link.lost(1, restarts=False) == []
    assert link.start(1) == []
    assert link.link.refusal is not None
    link.start(2)
    assert link.link.refusal is None
    link.submit(1)
    assert isinstance(link.heard(2, 1)[0], Compile)


def test_a_process_that_cannot_serve_refuses_what_waited_with_its_reason(link: Link) -> None:
    request = link.submit(1)
    news = link.start(100, "the tokenizer is not usable for grammars")
    assert news == [Compilation(request, "the tokenizer is not usable for grammars", True, GRAMMAR.field)]
    assert link.link.refusal == "the tokenizer is not usable for grammars"
