"""The official anthropic client."""

from typing import Any

import anthropic
from steps import Check

MESSAGES: Any = [{"role": "user", "content": "What does os.path.join do?"}]
TOOLS: Any = [
    {
        "name": "get_weather",
        "description": "Weather of a city",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
]

GREEDY = {"temperature": 0}  # newer clients have no argument for it

check = Check()
client = anthropic.Anthropic(base_url=check.base_url, api_key="none", max_retries=0, timeout=120)
model = check.model


def create() -> str:
    answer = client.messages.create(
        model=model, messages=MESSAGES, max_tokens=24, extra_body=GREEDY, system="Be brief."
    )
    assert answer.role == "assistant" and answer.usage.output_tokens > 0
    return f"{answer.stop_reason}: {answer.content[0].text}"


def stream() -> str:
    plain = client.messages.create(model=model, messages=MESSAGES, max_tokens=24, extra_body=GREEDY)
    with client.messages.stream(model=model, messages=MESSAGES, max_tokens=24, extra_body=GREEDY) as events:
        text = "".join(events.text_stream)
        final = events.get_final_message()
    assert text == plain.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (plain.stop_reason, plain.usage.output_tokens)
    return "the same text, stop_reason and usage"


def count_tokens() -> str:
    counted = client.messages.count_tokens(model=model, messages=MESSAGES)
    used = client.messages.create(model=model, messages=MESSAGES, max_tokens=1).usage
    assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)
    return f"{counted.input_tokens} tokens, as create counts"


def tools() -> str:
    answer = client.messages.create(
        model=model, messages=MESSAGES, tools=TOOLS, tool_choice={"type": "any"}, max_tokens=400, extra_body=GREEDY
    )
    (call, *_) = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use" and set(call.input) == {"city"}
    return f"{call.name}({call.input})"


def streamed_tools() -> str:
    choice: Any = {"type": "tool", "name": "get_weather"}
    with client.messages.stream(
        model=model, messages=MESSAGES, tools=TOOLS, tool_choice=choice, max_tokens=400, extra_body=GREEDY
    ) as events:
        final = events.get_final_message()
    (call, *_) = [block for block in final.content if block.type == "tool_use"]
    assert set(call.input) == {"city"}
    return f"{call.name}({call.input})"


def tool_result() -> str:
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "12 degrees"}
    messages: Any = [*MESSAGES, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    answer = client.messages.create(model=model, messages=messages, tools=TOOLS, max_tokens=8)
    return str(answer.stop_reason)


def errors() -> str:
    try:
        client.messages.create(model="nobody", messages=MESSAGES, max_tokens=8)
    except anthropic.NotFoundError as error:
        assert isinstance(error.body, dict) and error.body["type"] == "error"
        return f"NotFoundError, {error.body['error']['type']}"
    raise AssertionError("an unknown model was taken")


check.step("messages.create", create)
check.step("messages.stream", stream)
check.step("messages.count_tokens", count_tokens)
check.step("tools, any", tools)
check.step("tools, named, streamed", streamed_tools)
check.step("tool result in the messages", tool_result)
check.step("errors are typed", errors)
check.end()
