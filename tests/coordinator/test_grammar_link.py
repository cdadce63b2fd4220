"""The coordinator's link to the grammar process: when what is said, and what happens when the process dies."""

from collections.abc import Iterator

import numpy as np
import pytest
import zmq

from albireo import sockets
from albireo.coordinator.grammars import Compilation, GrammarLink
from albireo.coordinator.request import Request
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
        self.link = GrammarLink(self._router)
        self._processes: dict[int, zmq.Socket[bytes]] = {}
        self._decoder = grammar_decoder()

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


def test_a_matcher_that_breaks_is_nobodys_fault_but_its_requests_end(link: Link) -> None:
    link.start(100)
    (news,) = link.say(100, Broken(link.running(100, 1).grammar_handle, "no fuel"))
    assert news.problem == "the grammar failed: no fuel" and not news.is_clients


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


@pytest.mark.parametrize("restarts", [True, False])
def test_when_the_process_dies_its_requests_end_and_later_ones_wait_for_the_next(link: Link, restarts: bool) -> None:
    link.start(100)
    waiting, running, ended = link.submit(1), link.running(100, 2), link.running(100, 3)
    link.link.forget([ended])
    news = link.link.lost(100, restarts)
    assert {each.request.request_id for each in news} == {1, 2}
    assert all(each.problem and not each.is_clients for each in news)
    assert (link.link.refusal is None) == restarts
    assert waiting.grammar_handle != running.grammar_handle
    later = link.submit(4)
    assert link.start(200) == []
    assert link.link.refusal is None  # whoever comes serves again
    assert link.heard(200, 1) == [Compile(later.grammar_handle, "regex", "ab")]


def test_one_that_comes_before_the_death_of_the_last_is_heard_of_takes_its_place(link: Link) -> None:
    link.start(100)
    request = link.running(100, 1)
    (news,) = link.start(200)
    assert news.request is request and news.problem
    assert link.link.lost(100, restarts=True) == []
    assert link.running(200, 2).grammar_handle > request.grammar_handle


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
