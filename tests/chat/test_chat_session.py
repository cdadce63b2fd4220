"""The chat's loop: what stays in the conversation, and what is asked again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from chat_fake_server import FakeChatServer, running, said

from albireo.chat.client import ChatClient
from albireo.chat.session import Session
from albireo.chat.terminal import Terminal


class Script(Terminal):
    """A person who types these lines, and what the server is to do before each."""

    def __init__(self, lines: list[str], before: dict[int, list[dict[str, Any] | str]], server: FakeChatServer) -> None:
        super().__init__()
        self._lines = iter(enumerate(lines))
        self._before = before
        self._server = server

    def ask(self) -> str:
        try:
            number, line = next(self._lines)
        except StopIteration:
            raise EOFError from None
        if number in self._before:
            self._server.events = self._before[number]
        return line

    @contextmanager
    def answering(self) -> Iterator[None]:
        yield


@pytest.fixture
def server() -> Iterator[FakeChatServer]:
    with running() as fake:
        yield fake


def test_a_failed_answer_does_not_stay_and_its_question_can_be_asked_again(server: FakeChatServer) -> None:
    whole = list(server.events)
    failed: list[dict[str, Any] | str] = [said("half of"), {"error": {"message": "it broke"}}]
    script = Script(["one", "two", "/retry"], {1: failed, 2: whole}, server)
    Session(ChatClient(server.url, None, None), script, None, {}).run()
    texts = [[message["content"] for message in body["messages"]] for body in server.bodies]
    assert texts == [["one"], ["one", "Hello", "two"], ["one", "Hello", "two"]]
