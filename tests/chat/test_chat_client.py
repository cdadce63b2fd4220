from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_fake_server import FakeChatServer, running, said

from albireo.chat.client import ChatClient, ChatError
from albireo.chat.session import describe


@pytest.fixture
def server() -> Iterator[FakeChatServer]:
    with running() as fake:
        yield fake


def ask(client: ChatClient, **fields: object) -> str:
    return "".join(piece.text for piece in client.stream([{"role": "user", "content": "hi"}], fields))


def test_an_answer_comes_in_pieces_with_its_figures(server: FakeChatServer) -> None:
    client = ChatClient(server.url, None)
    assert ask(client, temperature=0.5) == "Hello"
    body = server.bodies[0]
    assert (body["model"], body["stream"], body["temperature"]) == ("first", True, 0.5)
    assert "max_tokens" not in body
    told = describe(client.stats)
    assert told.startswith("2 tokens, ")
    assert told.endswith("prompt 7 tokens (4 of them cached)")


def test_a_server_on_a_unix_socket_is_reached_as_it_calls_itself(tmp_path: Path) -> None:
    with running(str(tmp_path / "api.sock")) as server:
        assert ask(ChatClient(server.url, None)) == "Hello"
    with pytest.raises(ChatError, match=r"cannot reach http\+unix:.*/api\.sock: Connection refused"):
        ChatClient(server.url, None)


def test_the_key_is_sent_and_a_base_url_may_end_in_v1(server: FakeChatServer) -> None:
    client = ChatClient(f"{server.url}/v1/", "secret")
    assert server.keys == ["Bearer secret"]
    assert ask(client) == "Hello"


def test_what_the_model_thinks_is_told_apart_and_not_twice(server: FakeChatServer) -> None:
    server.events.insert(0, said("", reasoning_content="hm", reasoning="hm"))
    pieces = list(ChatClient(server.url, None).stream([], {}))
    assert [piece.reasoning for piece in pieces if piece.reasoning] == ["hm"]
    assert "".join(piece.text for piece in pieces) == "Hello"


def test_an_error_of_the_server_is_one_line_with_its_status(server: FakeChatServer) -> None:
    client = ChatClient(server.url, None)
    server.status, server.error = 400, {"error": {"message": "too\nlong", "param": "messages"}}
    with pytest.raises(ChatError, match=r"^too long \(HTTP 400\)$"):
        ask(client)
    server.status, server.error = 401, {"error": "no key"}
    with pytest.raises(ChatError, match=r"set --api-key or ALBIREO_API_KEY"):
        ask(client)
    server.status, server.error = 502, "<html>"
    with pytest.raises(ChatError, match="HTTP 502"):
        ask(client)


@pytest.mark.parametrize("event", [{"error": {"message": "broken"}}, {"choices": [{"delta": 5}]}, "{", "7"])
def test_a_stream_that_goes_wrong_is_an_error_behind_what_came(
    server: FakeChatServer, event: dict[str, object] | str
) -> None:
    server.events[1:] = [event]
    pieces = ChatClient(server.url, None).stream([], {})
    assert next(pieces).text == "Hel"
    with pytest.raises(ChatError):
        next(pieces)


def test_a_stream_that_just_ends_is_an_error(server: FakeChatServer) -> None:
    server.events.pop()
    with pytest.raises(ChatError, match="in the middle of the answer"):
        ask(ChatClient(server.url, None))


def test_a_server_that_is_not_there_or_has_no_model_is_one_line(server: FakeChatServer) -> None:
    with pytest.raises(ChatError, match=r"cannot reach http://127\.0\.0\.1:1: Connection refused; start a server"):
        ChatClient("http://127.0.0.1:1", None)
    server.models = []
    with pytest.raises(ChatError, match="lists no model"):
        ChatClient(server.url, None)
