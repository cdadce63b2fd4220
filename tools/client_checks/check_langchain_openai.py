"""LangChain's ChatOpenAI."""

from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel
from steps import Check

QUESTION = "What does os.path.join do?"


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Oslo"]
    sunny: bool


@tool
def get_weather(city: Literal["Paris", "Oslo"]) -> str:
    """Weather of a city."""
    return f"It rains in {city}."


check = Check()
url = f"{check.base_url}/v1"
chat = ChatOpenAI(model=check.model, base_url=url, api_key="none", temperature=0, max_tokens=400, max_retries=0)


def invoke() -> str:
    answer = chat.invoke(QUESTION)
    assert answer.usage_metadata and answer.usage_metadata["output_tokens"] > 0
    return str(answer.content)


def stream() -> str:
    chunks = [str(chunk.content) for chunk in chat.stream(QUESTION)]
    assert "".join(chunks) == chat.invoke(QUESTION).content
    return f"{len(chunks)} chunks, the same text"


def completion() -> str:
    return OpenAI(model=check.model, base_url=url, api_key="none", max_tokens=12, temperature=0).invoke("The")


def by_responses() -> str:
    answer = chat.model_copy(update={"use_responses_api": True}).invoke(QUESTION)
    return answer.text if isinstance(answer.text, str) else str(answer.content)


def structured() -> str:
    answer = chat.with_structured_output(Weather, method="json_schema").invoke(QUESTION)
    assert isinstance(answer, Weather)
    return repr(answer)


def by_function_calling() -> str:
    answer = chat.with_structured_output(Weather, method="function_calling").invoke(QUESTION)
    assert isinstance(answer, Weather)
    return repr(answer)


def tools() -> str:
    answer = chat.bind_tools([get_weather], tool_choice="any").invoke(QUESTION)
    (call, *_) = answer.tool_calls
    return f"{call['name']}({call['args']}) -> {get_weather.invoke(call['args'])}"


check.step("invoke", invoke)
check.step("stream", stream)
check.step("OpenAI (completions)", completion)
check.step("invoke, use_responses_api", by_responses)
check.step("with_structured_output, json_schema", structured)
check.step("with_structured_output, function_calling", by_function_calling)
check.step("bind_tools, any", tools)
check.end()
