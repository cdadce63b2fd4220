"""The process's step: what the coordinator says, what it answers, and the masks that devices see."""

import json
import os
from collections.abc import Iterator

import numpy as np
import pytest
import zmq
from model_tokenizer import EOS, VOCAB_SIZE, allowed, compiler

from albireo import sockets
from albireo.grammar.compile_pool import CompilePool
from albireo.grammar.compiler import Compiler
from albireo.grammar.grammarian import Grammarian
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
    from_grammar_decoder,
)
from albireo.shm import segment
from albireo.shm.flight import Unrecorded
from albireo.shm.grammar_masks import GrammarMasks, mask_tag

NUM_SLOTS = 5


class Process:
    """A grammarian whose coordinator is the test."""

    def __init__(self, compiler: Compiler) -> None:
        geometry = GrammarMasks(NUM_SLOTS, VOCAB_SIZE)
        fd = segment.create("masks", geometry.size)
        geometry.initialise(fd)
        self.table = geometry.attach(fd)
        """As the devices see it."""
        self.matchers = Matchers(geometry.attach(fd), compiler.tokenizer, 2)
        os.close(fd)
        self._tokenizer = compiler.tokenizer
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket, other = (sockets.open_socket(self._context, zmq.PAIR) for _ in range(2))
        self.socket.bind("inproc://grammar")
        other.connect("inproc://grammar")
        self._other = other
        self.pool = CompilePool(compiler, lambda: 0, 2)
        self.grammarian = Grammarian(other, self.pool, self.matchers, Unrecorded(), lambda: 0)
        self._decoder = from_grammar_decoder()

    def close(self) -> None:
        self.socket.close()
        self._other.close()
        self._context.term()

    def hear(self, *messages: ToGrammar) -> list[FromGrammar]:
        """The answers to messages, when all that compiles has compiled."""
        for message in messages:
            self.socket.send(encode(message))
        self.grammarian.step()
        poller = zmq.Poller()
        poller.register(self.pool.wake_fd, zmq.POLLIN)
        while self.pool.is_busy:
            poller.poll(30_000)
            self.grammarian.step()
        answers = []
        while self.socket.poll(0):
            answers.append(self._decoder.decode(self.socket.recv()))
        return answers

    def start(
        self, handle: int, slot: int, expression: str, position: int = 1, after: str = "", opened_by: str = ""
    ) -> None:
        assert self.hear(Compile(handle, "regex", expression, after, opened_by)) == [Compiled(handle)]
        assert self.hear(Bind(handle, slot, handle, position)) == []

    def advance(self, **texts: str) -> list[FromGrammar]:
        """`h1="a"`: the handle's next token is that of this text."""
        handles = np.array([int(name[1:]) for name in texts], "<u8").tobytes()
        return self.hear(Advance(1, handles, np.array([self.token(text) for text in texts.values()], "<i4").tobytes()))

    def token(self, text: str) -> int:
        (token,) = self._tokenizer.tokenize_str(text)
        return token

    def mask(self, slot: int, generation: int, position: int) -> list[str]:
        """Texts of what may come there; the mask must be the one for this place."""
        assert self.table.tags[slot] == mask_tag(generation, position)
        ids = allowed(self.table.masks[slot])
        return ["END"] * (set(EOS) <= set(ids)) + [self._tokenizer.decode_str([i]) for i in ids if i not in EOS]


@pytest.fixture(scope="module")
def grammars() -> Compiler:
    return compiler()


@pytest.fixture
def process(grammars: Compiler) -> Iterator[Process]:
    process = Process(grammars)
    yield process
    process.close()


def test_masks_follow_the_confirmed_tokens_to_the_end(process: Process) -> None:
    process.start(7, 2, "a[xy]", position=10)
    assert set(process.mask(2, 7, 10)) == {"a", "ax", "ay"}
    assert process.advance(h7="a") == []
    assert process.mask(2, 7, 11) == ["x", "y"]
    assert process.advance(h7="y") == []
    assert process.mask(2, 7, 12) == ["END"]
    assert np.flatnonzero(process.table.tags).tolist() == [2]


def test_rows_of_one_step_have_masks_of_their_own(process: Process) -> None:
    for handle, letter in enumerate("abcd", 1):
        process.start(handle, 5 - handle, f"{letter}+{letter.upper()}")
    assert process.advance(h1="a", h3="c", h2="b") == []
    for handle, letter in enumerate("abc", 1):
        assert process.mask(5 - handle, handle, 2)[:2] == [letter.upper(), letter]
    assert set(process.mask(1, 4, 1)) >= {"d"}


def test_a_preempted_request_goes_on_where_it_was(process: Process) -> None:
    process.start(1, 0, "abc", position=5)
    assert process.hear(Bind(1, -1, 0, 0)) == [] and process.table.tags[0] == 0
    process.start(2, 0, "x")
    late = process.advance(h1="a")  # was in flight when its slot was taken
    assert late == [] and process.mask(0, 2, 1) == ["x"]
    assert process.hear(Bind(1, 3, 9, 6)) == []
    assert process.mask(3, 9, 6) == ["b"]


def test_a_forgotten_request_leaves_no_mask_and_what_comes_late_for_it_is_ignored(process: Process) -> None:
    process.start(1, 0, "ab")
    assert process.hear(Forget([1, 99])) == [] and process.table.tags[0] == 0 and len(process.matchers) == 0
    assert process.advance(h1="a") == [] and process.hear(Bind(1, 0, 2, 1)) == [] and process.table.tags[0] == 0


def test_all_that_wait_for_one_grammar_hear_of_it_and_it_is_compiled_once(process: Process) -> None:
    answers = process.hear(Compile(1, "regex", "q!"), Compile(2, "regex", "q!"))
    assert answers == [Compiled(1), Compiled(2)]
    process.hear(Bind(1, 0, 1, 1), Bind(2, 1, 2, 1))
    process.advance(h1="q")
    assert process.mask(0, 1, 2) == ["!"]
    assert process.mask(1, 2, 1) == ["q"]  # copies do not move each other
    process.socket.send(encode(Compile(4, "regex", "q!")))
    process.grammarian.step()
    assert not process.pool.is_busy  # it was kept
    assert process.hear() == [Compiled(4)]


def test_a_grammar_that_does_not_compile_is_refused_to_each_of_its_requests(process: Process) -> None:
    answers = process.hear(Compile(1, "regex", "[a-"), Compile(2, "regex", "[a-"), Compile(3, "regex", "a"))
    refusals = [answer for answer in answers if isinstance(answer, Refused)]
    assert sorted(answer.handle for answer in refusals) == [1, 2] and all(answer.message for answer in refusals)
    assert Compiled(3) in answers and len(answers) == 3


def test_what_is_forgotten_while_it_compiles_gets_no_answer(process: Process) -> None:
    assert process.hear(Compile(1, "regex", "a"), Compile(2, "regex", "[0-9]+"), Forget([1])) == [Compiled(2)]
    assert len(process.matchers) == 1


def test_a_matcher_that_cannot_go_on_breaks_alone(process: Process) -> None:
    process.start(1, 0, "ab")
    process.start(2, 1, "ab")
    (broken,) = process.advance(h1="z", h2="a")
    assert isinstance(broken, Broken) and broken.handle == 1 and broken.message
    assert process.table.tags[0] == 0 and process.mask(1, 2, 2) == ["b"] and len(process.matchers) == 1


def test_a_schema_that_nothing_can_match_breaks_or_is_refused_and_never_leaves_an_empty_mask(process: Process) -> None:
    (answer,) = process.hear(Compile(1, "json_schema", json.dumps({"$ref": "#"})))
    if isinstance(answer, Compiled):
        (answer,) = process.hear(Bind(1, 0, 1, 1))
    assert isinstance(answer, Broken | Refused) and process.table.tags[0] == 0


def test_until_its_text_has_come_anything_may_but_the_end(process: Process) -> None:
    process.start(1, 0, "ab", after="k!")
    assert not set(EOS) & set(allowed(process.table.masks[0]))
    assert len(process.mask(0, 1, 1)) >= VOCAB_SIZE - len(EOS) - 32
    process.advance(h1="k")
    assert len(process.mask(0, 1, 2)) >= VOCAB_SIZE - len(EOS) - 32
    process.advance(h1="!")
    assert process.mask(0, 1, 3) == ["ab"]


def test_what_opens_the_awaited_text_may_begin_the_output_instead_of_the_grammar(process: Process) -> None:
    process.start(1, 0, "ab", after="k!", opened_by="<k")
    assert set(process.mask(0, 1, 1)) == {"ab", "<"}
    process.advance(h1="<")
    assert process.mask(0, 1, 2) == ["k"]
    process.advance(h1="k")
    assert len(process.mask(0, 1, 3)) >= VOCAB_SIZE - len(EOS) - 32
    process.advance(h1="k")
    process.advance(h1="!")
    assert process.mask(0, 1, 5) == ["ab"]


def test_an_output_that_does_not_begin_with_it_is_the_grammars_from_the_start(process: Process) -> None:
    process.start(1, 0, "ab", after="k!", opened_by="<k")
    process.advance(h1="ab")
    assert process.mask(0, 1, 2) == ["END"]


def test_a_token_that_could_begin_either_is_the_grammars(process: Process) -> None:
    process.start(1, 0, "<ab", after="k!", opened_by="<k")
    process.advance(h1="<")
    assert process.mask(0, 1, 2) == ["ab"]


def test_what_the_token_that_ends_the_awaited_text_holds_besides_belongs_to_the_grammar(process: Process) -> None:
    process.start(1, 0, ">ab", after="k>")
    process.advance(h1="k")
    process.advance(h1=">>")
    assert process.mask(0, 1, 3) == ["ab"]


def test_what_is_none_of_ours_is_dropped(process: Process) -> None:
    process.socket.send(b"nonsense")
    assert process.hear(Compile(1, "regex", "a")) == [Compiled(1)]
