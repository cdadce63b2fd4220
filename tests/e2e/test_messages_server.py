"""Anthropic's Messages API with the real `anthropic` client."""

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic
from server import Server

KEY = "secret"
TOOL: Any = {
    "name": "look_up",
    "description": "Looks a word up",
    "input_schema": {
        "type": "object", "properties": {"word": {"type": "string", "maxLength": 8}}, "required": ["word"],
        "additionalProperties": False,
    },
}  # fmt: skip
GREEDY: Any = {"extra_body": {"temperature": 0}}
"""Newer clients have no name for it."""
ASK: Any = {
    "model": "albireo-demo",
    "max_tokens": 40,
    "messages": [{"role": "user", "content": "What does os.path.join do?"}],
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--kv-cache-bytes", "64M", "--api-key", KEY) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key=KEY, max_retries=0) as client:
        yield client


def test_a_message_is_what_a_chat_answers(server: Server, client: Anthropic) -> None:
    message = client.messages.create(**ASK, **GREEDY, system="Be brief.")
    body = {"model": "albireo-demo", "temperature": 0, "max_tokens": 40}
    body["messages"] = [{"role": "system", "content": "Be brief."}, *ASK["messages"]]
    headers = {"Authorization": f"Bearer {KEY}"}
    chat = httpx.post(server.url + "/v1/chat/completions", json=body, headers=headers, timeout=60).json()
    (block,) = message.content
    assert block.type == "text" and block.text == chat["choices"][0]["message"]["content"]
    expected = {"stop": "end_turn", "length": "max_tokens"}[chat["choices"][0]["finish_reason"]]
    assert message.stop_reason == expected
    read = message.usage.cache_read_input_tokens or 0
    assert message.usage.input_tokens + read == chat["usage"]["prompt_tokens"]
    assert message.usage.output_tokens == chat["usage"]["completion_tokens"]
    counted = client.messages.count_tokens(model="albireo-demo", system="Be brief.", messages=ASK["messages"])
    assert counted.input_tokens == chat["usage"]["prompt_tokens"]


def test_a_streamed_message_is_the_same(client: Anthropic) -> None:
    whole = client.messages.create(**ASK, **GREEDY)
    with client.messages.stream(**ASK, **GREEDY) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == whole.content[0].text
    assert len(pieces) > 3
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_a_stop_sequence_is_named(client: Anthropic) -> None:
    whole = client.messages.create(**ASK, **GREEDY).content[0].text
    word = whole.split()[2]
    message = client.messages.create(**ASK, **GREEDY, stop_sequences=[word])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", word)


def test_a_tool_is_used_and_its_result_taken(client: Anthropic) -> None:
    fields: Any = ASK | {"max_tokens": 200, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "look_up"}}
    message = client.messages.create(**fields, **GREEDY)
    (block,) = message.content
    assert block.type == "tool_use" and block.name == "look_up" and set(block.input) == {"word"}
    assert message.stop_reason == "tool_use"
    with client.messages.stream(**fields, **GREEDY) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[0].input == block.input  # type: ignore[union-attr]
    result: Any = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "It joins."}]}
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": [block.model_dump(exclude_none=True)]},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    answer = client.messages.create(**ASK | {"messages": messages, "max_tokens": 5})
    assert answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) > 20


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 9000}, "max_tokens"),
        ({"extra_body": {"temperature": 1.5}}, "temperature"),
        ({"stop_sequences": ["a"] * 5}, "stop_sequences"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [
            {"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]}, "messages[0].content[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "no"}}, "tool_choice.name"),
        ({"tools": [TOOL]}, "tool_choice"),
        ({"extra_body": {"mcp_servers": [{}]}}, "mcp_servers"),
        ({"extra_body": {"nothing": 1}}, "nothing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_400_in_their_shape(client: Anthropic, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**ASK | fields)
    body: Any = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert named in body["error"]["message"]


def test_other_errors_have_their_shape_too(server: Server, client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**ASK | {"model": "no-such-model"})
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    stranger = Anthropic(base_url=server.url, api_key="wrong", max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError) as denied:
        stranger.messages.create(**ASK)
    assert denied.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
    response = httpx.get(server.url + "/v1/messages", headers={"x-api-key": KEY})
    assert response.status_code == 405 and response.json()["type"] == "error"
