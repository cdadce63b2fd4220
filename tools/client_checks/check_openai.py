"""The official openai client."""

import asyncio
import json
from typing import Any, Literal

import openai
from pydantic import BaseModel, Field
from steps import Check

CHAT: Any = [{"role": "user", "content": "What does os.path.join do?"}]
HELLO: Any = [{"role": "user", "content": "Hello"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Paris", "Oslo"]}, "unit": {"enum": ["C", "F"]}},
                "required": ["city", "unit"],
                "additionalProperties": False,
            },
        },
    }
]


class Weather(BaseModel):
    """What structured output is parsed into."""

    city: Literal["Paris", "Oslo"]
    degrees: int = Field(ge=0, le=40)


check = Check()
client = openai.OpenAI(base_url=f"{check.base_url}/v1", api_key="none", max_retries=0, timeout=120)
model = check.model


def chat() -> str:
    answer = client.chat.completions.create(model=model, messages=CHAT, max_tokens=24, temperature=0)
    assert answer.choices[0].message.content
    assert answer.usage and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    return answer.choices[0].message.content


def streamed_chat() -> str:
    options: Any = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model=model, messages=CHAT, max_tokens=24, temperature=0, stream=True, stream_options=options
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == chat()
    assert chunks[-1].usage
    return f"{len(chunks)} chunks, the same text"


def asynchronous() -> str:
    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{check.base_url}/v1", api_key="none", timeout=120) as client:

            async def one() -> str:
                stream = await client.chat.completions.create(
                    model=model, messages=CHAT, max_tokens=24, temperature=0, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

            return await asyncio.gather(*(one() for _ in range(8)))

    texts = asyncio.run(run())
    assert set(texts) == {chat()}
    return f"{len(texts)} streams at once, the same text"


def completion() -> str:
    answer = client.completions.create(model=model, prompt="The function returns", max_tokens=16, temperature=0)
    chunks = client.completions.create(
        model=model, prompt="The function returns", max_tokens=16, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    return answer.choices[0].text


def logprobs() -> str:
    answer = client.chat.completions.create(
        model=model, messages=CHAT, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert content and len(content[0].top_logprobs) == 3 and content[0].top_logprobs[0].token == content[0].token
    legacy = client.completions.create(model=model, prompt="The", max_tokens=4, temperature=0, logprobs=2, echo=True)
    scores = legacy.choices[0].logprobs
    assert scores and scores.token_logprobs and scores.token_logprobs[0] is None and scores.token_logprobs[1] < 0
    return [(token.token, round(token.logprob, 3)) for token in content].__str__()


def samples() -> str:
    answer = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=8, temperature=1.2, seed=1, n=4, stop=["\n", "zzz"]
    )
    texts = [choice.message.content for choice in answer.choices]
    assert len(texts) == 4 and len(set(texts)) > 1 and not any("\n" in (text or "") for text in texts)
    return str(texts)


def stop() -> str:
    whole = client.completions.create(model=model, prompt="The function", max_tokens=24, temperature=0)
    word = whole.choices[0].text.split()[3]
    answer = client.completions.create(model=model, prompt="The function", max_tokens=24, temperature=0, stop=word)
    assert answer.choices[0].text == whole.choices[0].text.split(word)[0]
    assert answer.choices[0].finish_reason == "stop"
    return f"ends before {word!r}"


def tools() -> str:
    answer = client.chat.completions.create(
        model=model, messages=CHAT, tools=TOOLS, tool_choice="required", max_tokens=400, temperature=0
    )
    (call, *_) = answer.choices[0].message.tool_calls or []
    assert answer.choices[0].finish_reason == "tool_calls"
    assert set(json.loads(call.function.arguments)) == {"city", "unit"}
    return f"{call.function.name}({call.function.arguments})"


def streamed_tools() -> str:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    stream = client.chat.completions.create(
        model=model, messages=CHAT, tools=TOOLS, tool_choice=named, max_tokens=400, temperature=0, stream=True
    )
    name, arguments = "", ""
    for chunk in stream:
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            name += (call.function and call.function.name) or ""
            arguments += (call.function and call.function.arguments) or ""
    assert name == "get_weather" and set(json.loads(arguments)) == {"city", "unit"}
    return f"{name}({arguments})"


def tool_result() -> str:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages: Any = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12 degrees"},
    ]
    answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, max_tokens=8, temperature=0)
    return answer.choices[0].finish_reason


def parsed() -> str:
    answer = client.beta.chat.completions.parse(
        model=model, messages=CHAT, response_format=Weather, max_tokens=300, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Weather)
    return repr(answer.choices[0].message.parsed)


def json_object() -> str:
    answer = client.chat.completions.create(
        model=model, messages=CHAT, response_format={"type": "json_object"}, max_tokens=400, temperature=0, seed=3
    )
    text = answer.choices[0].message.content or ""
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    assert text.lstrip().startswith("{")
    return text


def errors() -> str:
    try:
        client.chat.completions.create(model=model, messages=CHAT, temperature=9)
    except openai.BadRequestError as error:
        assert error.param == "temperature"
    else:
        raise AssertionError("temperature 9 was taken")
    try:
        client.chat.completions.create(model="nobody", messages=CHAT)
    except openai.NotFoundError as error:
        return f"BadRequestError, {error.code}"
    raise AssertionError("an unknown model was taken")


def responses() -> str:
    answer = client.responses.create(model=model, input="What does os.path.join do?", max_output_tokens=24)
    assert answer.output_text and answer.usage
    return f"{answer.status}: {answer.output_text}"


def streamed_responses() -> str:
    events = list(client.responses.create(model=model, input="Hello", max_output_tokens=16, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    done = [event for event in events if event.type in ("response.completed", "response.incomplete")]
    assert done[0].response.output_text == text
    return f"{len(events)} events, {done[0].type}"


def responses_tools() -> str:
    tool: Any = {"type": "function", "strict": True, **TOOLS[0]["function"]}
    answer = client.responses.create(
        model=model, input="Hello", tools=[tool], tool_choice="required", max_output_tokens=400
    )
    (call, *_) = [item for item in answer.output if item.type == "function_call"]
    assert set(json.loads(call.arguments)) == {"city", "unit"}
    return f"{call.name}({call.arguments})"


def responses_parsed() -> str:
    answer = client.responses.parse(model=model, input="Hello", text_format=Weather, max_output_tokens=300)
    assert isinstance(answer.output_parsed, Weather)
    return repr(answer.output_parsed)


check.step("models.list", lambda: [card.id for card in client.models.list()])
check.step("chat", chat)
check.step("chat, streamed", streamed_chat)
check.step("chat, async", asynchronous)
check.step("completions, streamed too", completion)
check.step("logprobs, echo", logprobs)
check.step("n = 4", samples)
check.step("stop", stop)
check.step("tools, required", tools)
check.step("tools, named, streamed", streamed_tools)
check.step("tool result in the messages", tool_result)
check.step("beta.chat.completions.parse", parsed)
check.step("json_object", json_object)
check.step("errors are typed", errors)
check.step("responses", responses)
check.step("responses, streamed", streamed_responses)
check.step("responses, tools", responses_tools)
check.step("responses.parse", responses_parsed)
check.end()
