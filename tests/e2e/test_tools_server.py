"""Tool calls and typed answers with the real `openai` client, on a model that has never seen a tool: grammars do it."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel
from server import Server

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "maxLength": 10},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["place", "unit"],
            "additionalProperties": False,
        },
    },
}
ABSENT: Any = {"type": "function", "function": {"name": "no"}}
UNTYPED: Any = {"type": "function", "function": {"name": "f", "parameters": [1]}}
TIME: Any = {"type": "function", "function": {"name": "get_time"}}
TIME["function"]["parameters"] = {"type": "object", "properties": {}, "additionalProperties": False}
CHAT: Any = {"model": "albireo-demo", "messages": [{"role": "user", "content": "What is it like?"}], "max_tokens": 400}


def called(role: str, arguments: str) -> dict[str, Any]:
    """A message with a call."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": role, "content": "x", "tool_calls": [call]}


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    flags = ("--kv-cache-bytes", "64M", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with Server(*flags) as server, OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("seed", range(3))
def test_a_call_that_must_be_made_is_made(client: OpenAI, seed: int) -> None:
    choice = client.chat.completions.create(
        **CHAT, tools=[WEATHER, TIME], tool_choice="required", parallel_tool_calls=False, seed=seed
    ).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert call.type == "function" and call.id
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_time":
        assert arguments == {}
    else:
        assert call.function.name == "get_weather"
        assert set(arguments) == {"place", "unit"} and arguments["unit"] in ("celsius", "fahrenheit")


def test_a_named_function_is_called_and_the_answer_can_go_on(client: OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    choice = client.chat.completions.create(**CHAT, tools=[WEATHER, TIME], tool_choice=named, seed=1).choices[0]
    assert choice.finish_reason == "stop"
    (call,) = choice.message.tool_calls or []
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["unit"] in ("celsius", "fahrenheit")
    messages: Any = [
        *CHAT["messages"],
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "It rains."},
    ]
    answer = client.chat.completions.create(**CHAT | {"messages": messages, "max_tokens": 8}, tools=[WEATHER])
    assert answer.usage and answer.usage.prompt_tokens > 20


def test_a_streamed_call_is_the_same_call(client: OpenAI) -> None:
    fields: Any = CHAT | {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "seed": 5}
    (whole,) = client.chat.completions.create(**fields).choices[0].message.tool_calls or []
    name, arguments, finish = "", [], None
    for chunk in client.chat.completions.create(**fields, stream=True):
        choice = chunk.choices[0]
        finish = choice.finish_reason or finish
        for piece in choice.delta.tool_calls or []:
            assert piece.index == 0 and piece.function
            name += piece.function.name or ""
            arguments.append(piece.function.arguments or "")
    assert (name, "".join(arguments), finish) == (whole.function.name, whole.function.arguments, "tool_calls")
    assert len(arguments) > 3


class Shelf(BaseModel):
    kind: Literal["wood", "steel"]
    boards: int
    is_full: bool


def test_a_pydantic_model_comes_back(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(**CHAT, response_format=Shelf, seed=2).choices[0].message.parsed
    assert isinstance(parsed, Shelf)


def test_a_model_that_calls_nothing_answers_in_text(client: OpenAI) -> None:
    fields = CHAT | {"max_tokens": 12, "seed": 4}
    plain = client.chat.completions.create(**fields).choices[0].message
    offered = client.chat.completions.create(**fields, tools=[WEATHER]).choices[0].message
    assert offered.content == plain.content and not offered.tool_calls


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": ABSENT}, "tool_choice.function.name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [UNTYPED]}, "tools[0].function.parameters"),
        (
            {"tools": [WEATHER], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "tool_choice",
        ),
        ({"tools": [WEATHER], "tool_choice": "required", "extra_body": {"min_tokens": 3}}, "min_tokens"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [called("user", "{}")]}, "messages[0].tool_calls"),
        ({"messages": [called("assistant", "[1]")]}, "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [called("assistant", "[" * 99)]}, "messages[0].tool_calls[0].function.arguments"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_a_400_that_names_the_field(
    client: OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**CHAT | fields)
    assert caught.value.param == param
    assert param in caught.value.message
