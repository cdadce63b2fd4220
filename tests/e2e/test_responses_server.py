"""The Responses API with the real `openai` client."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel
from server import Server

TOOL: Any = {
    "type": "function", "name": "look_up", "strict": True,
    "parameters": {
        "type": "object", "properties": {"word": {"type": "string", "maxLength": 8}}, "required": ["word"],
        "additionalProperties": False,
    },
}  # fmt: skip
ASK: Any = {"model": "albireo-demo", "input": "What does os.path.join do?", "max_output_tokens": 40}


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    with (
        Server("--kv-cache-bytes", "64M") as server,
        OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_a_response_is_what_a_chat_answers(client: OpenAI) -> None:
    response = client.responses.create(**ASK, temperature=0, instructions="Be brief.")
    chat = client.chat.completions.create(
        model="albireo-demo", temperature=0, max_tokens=40,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASK["input"]}],
    )  # fmt: skip
    assert response.output_text == chat.choices[0].message.content
    assert response.usage and chat.usage
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.output_tokens == chat.usage.completion_tokens
    assert response.instructions == "Be brief." and response.temperature == 0
    if response.status == "incomplete":
        assert response.incomplete_details and response.incomplete_details.reason == "max_output_tokens"


def test_events_tell_the_same_response(client: OpenAI) -> None:
    whole = client.responses.create(**ASK, temperature=0)
    with client.responses.stream(**ASK, temperature=0) as stream:
        events = list(stream)
    types = [event.type for event in events]
    assert types[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert types[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert types[-1] in ("response.completed", "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == whole.output_text
    assert types.count("response.output_text.delta") > 3


def test_a_call_its_result_and_the_answer(client: OpenAI) -> None:
    fields: Any = ASK | {
        "tools": [TOOL],
        "tool_choice": {"type": "function", "name": "look_up"},
        "max_output_tokens": 200,
    }
    response = client.responses.create(**fields, extra_body={"seed": 3})
    (call,) = response.output
    assert call.type == "function_call" and call.name == "look_up"
    assert set(json.loads(call.arguments)) == {"word"}
    streamed = list(client.responses.create(**fields, stream=True, extra_body={"seed": 3}))
    arguments = "".join(event.delta for event in streamed if event.type == "response.function_call_arguments.delta")
    assert arguments == call.arguments
    history: Any = [
        {"role": "user", "content": ASK["input"]},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "It joins."},
    ]
    answer = client.responses.create(model="albireo-demo", input=history, max_output_tokens=8)
    assert answer.usage and answer.usage.input_tokens > 20


class Answer(BaseModel):
    is_good: bool
    stars: int


def test_a_pydantic_model_comes_back(client: OpenAI) -> None:
    fields: Any = ASK | {"max_output_tokens": 200}
    parsed = client.responses.parse(**fields, text_format=Answer, extra_body={"seed": 1}).output_parsed
    assert isinstance(parsed, Answer)


def test_logprobs_come_with_the_text(client: OpenAI) -> None:
    response = client.responses.create(**ASK, include=["message.output_text.logprobs"], top_logprobs=2, temperature=0)
    content: Any = response.output[0].content
    entries = content[0].logprobs
    assert response.usage and response.usage.output_tokens >= len(entries) >= response.usage.output_tokens - 1
    assert all(len(entry.top_logprobs) == 2 for entry in entries)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "no"}}}}, "text.format.schema"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"extra_body": {"max_tool_calls": 3}}, "max_tool_calls"),
        ({"extra_body": {"nothing": 3}}, "nothing"),
    ],
)
def test_what_is_wrong_is_a_400_that_names_the_field(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**ASK | fields)
    assert caught.value.param == param
    assert param in caught.value.message
