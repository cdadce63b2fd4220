"""litellm with the openai/ and the hosted_vllm/ prefix."""

import asyncio
from typing import Any

import litellm
from steps import Check

MESSAGES = [{"role": "user", "content": "What does os.path.join do?"}]

check = Check()
litellm.suppress_debug_info = True
common: dict[str, Any] = {
    "model": f"openai/{check.model}", "api_base": f"{check.base_url}/v1", "api_key": "none", "messages": MESSAGES,
    "max_tokens": 24, "temperature": 0, "num_retries": 0,
}  # fmt: skip


def completion() -> str:
    answer: Any = litellm.completion(**common)
    assert answer.usage.completion_tokens > 0
    return str(answer.choices[0].message.content)


def stream() -> str:
    chunks: Any = list(litellm.completion(**common, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == completion()
    return f"{len(chunks)} chunks, the same text"


def asynchronous() -> str:
    answer: Any = asyncio.run(litellm.acompletion(**common))
    assert answer.choices[0].message.content == completion()
    return "the same text"


def text_completion() -> str:
    settings = {name: value for name, value in common.items() if name != "messages"}
    answer: Any = litellm.text_completion(**settings | {"model": f"text-completion-openai/{check.model}"}, prompt="The")
    return str(answer.choices[0].text)


def hosted_vllm() -> str:
    answer: Any = litellm.completion(**common | {"model": f"hosted_vllm/{check.model}"})
    assert answer.choices[0].message.content == completion()
    return "the same text"


def by_messages() -> str:
    answer: Any = litellm.completion(**common | {"model": f"anthropic/{check.model}", "api_base": check.base_url})
    assert answer.choices[0].message.content == completion()
    return "the same text"


def tools() -> str:
    parameters = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    answer: Any = litellm.completion(**common | {"max_tokens": 400}, tools=[tool], tool_choice="required")
    call = answer.choices[0].message.tool_calls[0]
    return f"{call.function.name}({call.function.arguments})"


check.step("completion", completion)
check.step("completion, streamed", stream)
check.step("acompletion", asynchronous)
check.step("text_completion", text_completion)
check.step("hosted_vllm/", hosted_vllm)
check.step("anthropic/", by_messages)
check.step("tools, required", tools)
check.end()
