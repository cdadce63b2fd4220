"""What `/v1/responses` and `/v1/messages` make of a request, and that their errors name the request's own fields."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import tokenizer_files
from fakes import tokens_reply
from frontend_server import MODEL, FrontendServer

from albireo import limits
from albireo.errors import RequestError
from albireo.frontend.anthropic import endpoints as anthropic_endpoints
from albireo.frontend.anthropic.requests import CountTokensRequest, MessagesRequest
from albireo.frontend.anthropic.to_chat import chat_of_messages, chat_of_prompt
from albireo.frontend.field_names import Names, rename_field
from albireo.frontend.requests import ChatRequest
from albireo.frontend.responses import endpoint as responses_endpoint
from albireo.frontend.responses.requests import ResponsesRequest
from albireo.frontend.responses.to_chat import chat_of_response

THOUGHT = {"type": "reasoning", "summary": []}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c", "output": "x"}
USER, ASSISTANT = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
SCHEMA = {"type": "object"}
TOO_LONG = {"title": "x" * limits.MAX_GRAMMAR_CHARS}


@pytest.fixture(scope="module")
def server(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontendServer]:
    with FrontendServer(tmp_path_factory.mktemp("run"), tokenizer_path, tokens_reply([74], eos=2)) as server:
        yield server


def thought(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}], **fields}


def messages_of(*items: dict[str, Any]) -> list[tuple[str, Any, str | None, int]]:
    """Role, content, reasoning and number of calls of each message."""
    request = msgspec.json.decode(msgspec.json.encode({"input": [USER, *items]}), type=ResponsesRequest)
    return [
        (message.role, message.content, message.reasoning, len(message.tool_calls or ()))
        for message in chat_of_response(request).messages[1:]
    ]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([thought("1"), thought("2"), ASSISTANT], [("assistant", "a", "1\n2", 0)]),
        ([thought("1"), ASSISTANT, CALL], [("assistant", "a", "1", 1)]),
        ([ASSISTANT, thought("1"), CALL], [("assistant", "a", "1", 1)]),
        ([thought("1"), ASSISTANT, thought("2"), CALL, thought("3"), CALL], [("assistant", "a", "1\n2\n3", 2)]),
        (
            [thought("1"), CALL, RESULT, thought("2"), ASSISTANT],
            [("assistant", "", "1", 1), ("tool", "x", None, 0), ("assistant", "a", "2", 0)],
        ),
        ([CALL, thought("1"), RESULT], [("assistant", "", "1", 1), ("tool", "x", None, 0)]),
        ([thought("1"), USER], [("assistant", "", "1", 0), ("user", "u", None, 0)]),
        ([thought("1")], [("assistant", "", "1", 0)]),
        ([THOUGHT, USER], [("user", "u", None, 0)]),
        ([ASSISTANT, thought("1"), ASSISTANT], [("assistant", "a", None, 0), ("assistant", "a", "1", 0)]),
    ],
)  # fmt: skip
def test_no_thought_of_the_input_is_lost(items: list[dict[str, Any]], expected: list[Any]) -> None:
    assert messages_of(*items) == expected


def test_a_thought_that_comes_back_without_encrypted_content_is_taken() -> None:
    items = [thought("1", id="rs_1", status="completed", encrypted_content=None), ASSISTANT]
    assert messages_of(*items) == [("assistant", "a", "1", 0)]
    with pytest.raises(RequestError) as caught:
        messages_of(thought("1", encrypted_content="abc"))
    assert caught.value.field == "input[1].encrypted_content"


@pytest.mark.parametrize(
    ("item", "name"),
    [
        (USER | {"arguments": "{}"}, "arguments"),
        (USER | {"call_id": "c"}, "call_id"),
        (CALL | {"content": "a"}, "content"),
        (CALL | {"role": "assistant"}, "role"),
        (RESULT | {"name": "f"}, "name"),
        (RESULT | {"summary": []}, "summary"),
        (THOUGHT | {"output": "x"}, "output"),
        (THOUGHT | {"phase": "x"}, "phase"),
    ],
)
def test_a_field_of_another_type_of_item_is_refused(item: dict[str, Any], name: str) -> None:
    with pytest.raises(RequestError) as caught:
        messages_of(item)
    assert caught.value.field == f"input[1].{name}" and f"input[1].{name}" in caught.value.message
    messages_of(item | {name: None})


def test_encrypted_content_may_be_asked_for(server: FrontendServer) -> None:
    body = {"input": "Hello", "store": False, "include": ["reasoning.encrypted_content"], "max_output_tokens": 4}
    response = httpx.post(server.url + "/v1/responses", json=body)
    assert response.status_code == 200 and "encrypted_content" not in response.text


def test_the_model_sees_that_a_tool_failed() -> None:
    def content(**fields: Any) -> object:
        block = {"type": "tool_result", "tool_use_id": "c", "content": "no such file"} | fields
        body = {"model": MODEL, "messages": [{"role": "user", "content": [block]}]}
        request = msgspec.json.decode(msgspec.json.encode(body), type=CountTokensRequest)
        return chat_of_prompt(request, knows_thinking=False).messages[0].content

    assert content() == content(is_error=False) == "no such file"
    assert content(is_error=True) == "Error: no such file"
    assert content(is_error=True, content=None) == "Error: "


def test_thinking_is_refused_only_where_no_model_thinks(tokenizer_path: Path, tmp_path: Path) -> None:
    body = {"model": MODEL, "max_tokens": 4, "messages": [USER]}
    reads = tokenizer_files.CHATML + "{% if enable_thinking %}<think>{% endif %}"
    kinds: list[tuple[str, dict[str, Any], bool]] = [
        ("a", {}, True), ("b", {"reasoning_parser": "qwen3"}, False), ("c", {"chat_template": reads}, False),
    ]  # fmt: skip
    for name, changes, refused in kinds:
        (tmp_path / name).mkdir()
        with FrontendServer(tmp_path / name, tokenizer_path, tokens_reply([74], eos=2), **changes) as server:
            for type_ in ("enabled", "disabled", "adaptive"):
                for path in ("/v1/messages", "/v1/messages/count_tokens"):
                    asked = {key: body[key] for key in body if key != "max_tokens" or path == "/v1/messages"}
                    response = httpx.post(server.url + path, json=asked | {"thinking": {"type": type_}})
                    assert response.status_code == (400 if refused and type_ == "enabled" else 200), (name, type_)
                    if response.status_code == 400:
                        assert "thinking.type" in response.json()["error"]["message"]


def names_in_errors(chat: ChatRequest, names: Names) -> dict[str, str]:
    """Of the chat's fields that the other API's request has filled: what an error calls them."""
    plain = ChatRequest(messages=[])
    found = {}
    for name in chat.__struct_fields__:
        if getattr(chat, name) != getattr(plain, name):
            error = RequestError(f"{name} is wrong", field=name)
            rename_field(error, names, chat.messages, [])
            assert error.field is not None and error.message == f"{error.field} is wrong"
            found[name] = error.field
    return found


def test_an_error_of_any_translated_field_names_one_of_the_request_s_own() -> None:
    body: dict[str, Any] = {
        "model": MODEL, "input": [USER], "instructions": "i", "max_output_tokens": 4, "temperature": 1, "top_p": 0.5,
        "top_k": 3, "min_p": 0.1, "seed": 1, "stop": "x", "stream": True, "top_logprobs": 2,
        "include": ["message.output_text.logprobs"], "tools": [tool()], "parallel_tool_calls": False,
        "tool_choice": {"type": "function", "name": "f"}, "text": format_(SCHEMA), "reasoning": {"effort": "low"},
    }  # fmt: skip
    response = msgspec.json.decode(msgspec.json.encode(body), type=ResponsesRequest)
    found = names_in_errors(chat_of_response(response), responses_endpoint.FIELD_NAMES)
    assert len(found) == len(body) - 1  # instructions are a message
    assert {name.split(".")[0] for name in found.values()} == body.keys() - {"instructions"}

    body = {
        "model": MODEL, "messages": [USER], "system": "s", "max_tokens": 4, "temperature": 1, "top_p": 0.5, "top_k": 3,
        "stop_sequences": ["x"], "stream": True, "tools": [anthropic_tool()], "thinking": {"type": "disabled"},
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    }  # fmt: skip
    message = msgspec.json.decode(msgspec.json.encode(body), type=MessagesRequest)
    found = names_in_errors(chat_of_messages(message, knows_thinking=True), anthropic_endpoints.FIELD_NAMES)
    assert {name.split(".")[0] for name in found.values()} == body.keys() - {"system"}
    assert found["parallel_tool_calls"] == "tool_choice.disable_parallel_tool_use"


def test_what_a_tool_choice_needs_is_said_in_no_api_s_own_words(server: FrontendServer) -> None:
    asked: dict[str, dict[str, Any]] = {
        "/v1/messages": {"messages": [USER], "max_tokens": 4, "tools": [anthropic_tool()]},
        "/v1/responses": {"input": "Hello", "tools": [tool()]},
        "/v1/chat/completions": {"messages": [USER], "tools": [{"type": "function", "function": {"name": "f"}}]},
    }
    for path, fields in asked.items():
        message = httpx.post(server.url + path, json={"model": MODEL} | fields).json()["error"]["message"]
        assert message.startswith("tool_choice: auto") and "--enable-auto-tool-choice" in message
        assert not any(word in message for word in ("required", "function", " any"))


def tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "name": "f", "parameters": SCHEMA} | fields


def format_(schema: Any) -> dict[str, Any]:
    return {"format": {"type": "json_schema", "name": "x", "schema": schema}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"input": "Hello " * 300}, "input"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"text": format_(5)}, "text.format.schema"),
        ({"text": format_(None)}, "text.format.schema"),
        ({"text": format_(TOO_LONG)}, "text.format.schema"),
        ({"tools": [tool()]}, "tool_choice"),
        ({"tools": [tool(), tool()], "tool_choice": "required"}, "tools[1].name"),
        ({"tools": [tool(parameters=5)], "tool_choice": "required"}, "tools[0].parameters"),
        ({"tools": [tool(parameters={"type": "array"})], "tool_choice": "required"}, "tools[0].parameters.type"),
        ({"tools": [tool()], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"instructions": "i", "input": [USER, ASSISTANT, CALL, CALL | {"arguments": "{"}]}, "input[3].arguments"),
        ({"input": [CALL | {"arguments": "[]"}]}, "input[0].arguments"),
        ({"input": [USER], "top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
    ],
)
def test_errors_of_responses_name_their_fields(server: FrontendServer, fields: dict[str, Any], param: str) -> None:
    response = httpx.post(server.url + "/v1/responses", json={"model": MODEL, "input": "Hello"} | fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param and error["message"].startswith(param)
    assert not any(name in error["message"] for name in (".function", "messages", "json_schema."))


def anthropic_tool(**fields: Any) -> dict[str, Any]:
    return {"name": "f", "input_schema": SCHEMA} | fields


def use(input_: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": "c", "name": "f", "input": input_}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": [{"role": "user", "content": "Hello " * 300}]}, "messages "),
        ({"tools": [anthropic_tool(input_schema=5)], "tool_choice": {"type": "any"}}, "tools[0].input_schema "),
        (
            {"tools": [anthropic_tool(input_schema={"type": "array"})], "tool_choice": {"type": "any"}},
            "tools[0].input_schema.type ",
        ),
        ({"tools": [anthropic_tool()] * 2, "tool_choice": {"type": "any"}}, "tools[1].name "),
        ({"tools": [anthropic_tool()], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name "),
        ({"tool_choice": {"type": "any"}}, "tool_choice "),
        (
            {"system": "s", "messages": [USER, {"role": "assistant", "content": [
                {"type": "text", "text": "a"}, use({}), use([1])]}]},
            "messages[1].content[2].input ",
        ),
    ],
)  # fmt: skip
def test_errors_of_messages_name_their_fields(server: FrontendServer, fields: dict[str, Any], named: str) -> None:
    body = {"model": MODEL, "messages": [USER]} | fields
    response = httpx.post(server.url + "/v1/messages", json=body | {"max_tokens": 4})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith(named) and ".function" not in message
    assert ".function" not in httpx.post(server.url + "/v1/messages/count_tokens", json=body).text
