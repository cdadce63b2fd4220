"""Reasoning and calls that the model makes of itself, on every endpoint that has them, whole and streamed."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from anthropic import Anthropic
from fakes import tokens_reply
from frontend_server import MODEL, FrontendServer
from openai import OpenAI
from tokenizers import Tokenizer

from albireo.frontend.message_parsing import message_parsing
from albireo.frontend.message_parts import ReasoningPart, TextPart, ToolCallBegin
from albireo.frontend.requests import ChatMessage, ChatRequest

CALL = '<tool_call>\n{"name": "look_up", "arguments": {"word": "fox"}}\n</tool_call>'
TEXT = f"<think>The fox?\nYes.</think>\n\nHello world. {CALL}"
TOOL: Any = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
CHAT: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 200, "tools": [TOOL]}


@pytest.fixture(scope="module")
def server(
    tokenizer_path: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FrontendServer]:
    reply = tokens_reply(tokenizer.encode(TEXT).ids, eos=2)
    changes: dict[str, Any] = {
        "enable_auto_tool_choice": True, "tool_call_parser": "hermes", "reasoning_parser": "qwen3",
    }  # fmt: skip
    with FrontendServer(tmp_path_factory.mktemp("run"), tokenizer_path, reply, **changes) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: FrontendServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat_s_message_has_its_parts(client: OpenAI) -> None:
    choice: Any = client.chat.completions.create(**CHAT).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.reasoning_content == choice.message.reasoning == "The fox?\nYes."
    assert choice.message.content.strip() == "Hello world."
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("look_up", {"word": "fox"})


def test_a_streamed_chat_has_the_same_parts(client: OpenAI) -> None:
    reasoning, content, name, arguments, finish = "", "", "", "", None
    for chunk in client.chat.completions.create(**CHAT, stream=True):
        delta: Any = chunk.choices[0].delta
        reasoning += getattr(delta, "reasoning_content", None) or ""
        content += delta.content or ""
        finish = chunk.choices[0].finish_reason or finish
        for piece in delta.tool_calls or []:
            name += piece.function.name or ""
            arguments += piece.function.arguments or ""
    assert (reasoning, content.strip()) == ("The fox?\nYes.", "Hello world.")
    assert (name, json.loads(arguments), finish) == ("look_up", {"word": "fox"}, "tool_calls")


def test_no_tools_are_looked_for_where_none_may_be_called(client: OpenAI) -> None:
    message: Any = client.chat.completions.create(**CHAT, tool_choice="none").choices[0].message
    assert message.reasoning_content == "The fox?\nYes."
    assert message.content == f"Hello world. {CALL}" and not message.tool_calls


def test_a_call_of_what_is_no_tool_is_text(client: OpenAI) -> None:
    other: Any = {"type": "function", "function": {"name": "other"}}
    message: Any = client.chat.completions.create(**CHAT | {"tools": [other]}).choices[0].message
    assert message.content == f"Hello world. {CALL}" and not message.tool_calls


@pytest.mark.parametrize(
    "constraint", [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"regex": "a+"}}]
)
def test_no_tools_are_looked_for_in_what_a_grammar_constrains(client: OpenAI, constraint: dict[str, Any]) -> None:
    choice: Any = client.chat.completions.create(**CHAT, extra_body=constraint).choices[0]
    assert choice.message.reasoning_content == "The fox?\nYes."
    assert choice.message.content == f"Hello world. {CALL}" and not choice.message.tool_calls
    assert choice.finish_reason == "stop"


def test_a_response_has_them_as_items(client: OpenAI) -> None:
    tool: Any = {"type": "function", **TOOL["function"]}
    fields: Any = {"model": MODEL, "input": "Hello", "max_output_tokens": 200, "tools": [tool]}
    response = client.responses.create(**fields)
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    thought, message, call = (item.model_dump() for item in response.output)
    assert thought["content"][0]["text"] == "The fox?\nYes."
    assert message["content"][0]["text"].strip() == "Hello world."
    assert (call["name"], json.loads(call["arguments"])) == ("look_up", {"word": "fox"})
    with client.responses.stream(**fields) as stream:
        final = stream.get_final_response()
    texts = [(item.type, item.model_dump(exclude={"id", "call_id"})) for item in final.output]
    whole = [(item.type, item.model_dump(exclude={"id", "call_id"})) for item in response.output]
    assert [each[0] for each in texts] == [each[0] for each in whole]
    assert texts[1][1]["content"][0]["text"] == whole[1][1]["content"][0]["text"]
    assert texts[2][1]["arguments"] == whole[2][1]["arguments"]


def test_a_response_counts_the_tokens_of_its_reasoning(client: OpenAI, tokenizer: Tokenizer) -> None:
    thought = len(tokenizer.encode("<think>The fox?\nYes.").ids)
    for num_tokens, counted in ((200, thought), (thought - 1, thought - 1), (thought + 1, thought)):
        fields: Any = {"model": MODEL, "input": "Hello", "max_output_tokens": num_tokens}
        whole = client.responses.create(**fields)
        *_, last = client.responses.create(**fields, stream=True)
        for response in (whole, last.response):
            assert response.usage and response.usage.output_tokens_details.reasoning_tokens == counted
        chat: Any = {"model": MODEL, "messages": CHAT["messages"], "max_tokens": num_tokens}
        *_, chunk = client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True})
        for usage in (client.chat.completions.create(**chat).usage, chunk.usage):
            assert usage.completion_tokens_details.reasoning_tokens == counted
        two: Any = client.chat.completions.create(**chat, n=2).usage
        assert two.completion_tokens_details.reasoning_tokens == 2 * counted


def test_special_tokens_that_are_shown_are_text_of_the_reasoning_too(
    tokenizer_path: Path, tokenizer: Tokenizer, run_dir: Path
) -> None:
    thought = tokenizer.encode("<think>The<|im_start|>fox?").ids
    reply = tokens_reply([*thought, *tokenizer.encode("</think>Hello world, the lazy dog").ids], eos=2)
    with FrontendServer(run_dir, tokenizer_path, reply, reasoning_parser="qwen3") as server:
        for is_skipped in (True, False):
            fields = {"messages": CHAT["messages"], "max_tokens": 200, "skip_special_tokens": is_skipped}
            usage = httpx.post(server.url + "/v1/chat/completions", json=fields, timeout=30).json()["usage"]
            assert usage["completion_tokens_details"]["reasoning_tokens"] == len(thought)


def test_a_chat_s_token_ids_are_given_only_where_they_are_asked_for(client: OpenAI) -> None:
    for stream in (False, True):
        answer: Any = client.chat.completions.create(**CHAT, stream=stream)
        for piece in answer if stream else [answer]:
            assert "token_ids" not in piece.choices[0].model_dump()


def test_a_response_s_logprobs_are_those_of_its_text(client: OpenAI) -> None:
    tool: Any = {"type": "function", **TOOL["function"]}
    fields: Any = {
        "model": MODEL, "input": "Hello", "max_output_tokens": 200, "tools": [tool], "top_logprobs": 1,
        "include": ["message.output_text.logprobs"],
    }  # fmt: skip
    whole: Any = client.responses.create(**fields).output[1]
    (part,) = whole.content
    assert "".join(entry.token for entry in part.logprobs).strip() == part.text.strip() == "Hello world."
    assert all(len(entry.top_logprobs) == 1 for entry in part.logprobs)
    events: list[Any] = list(client.responses.create(**fields, stream=True))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    (done,) = (event for event in events if event.type == "response.output_text.done")
    for entries in ([entry for event in deltas for entry in event.logprobs], done.logprobs):
        assert [entry.token for entry in entries] == [entry.token for entry in part.logprobs]
        assert [entry.logprob for entry in entries] == [entry.logprob for entry in part.logprobs]


def test_a_message_has_them_as_blocks(server: FrontendServer) -> None:
    tool: Any = {"name": "look_up", "input_schema": {"type": "object", "properties": {}}}
    fields: Any = {"model": MODEL, "messages": CHAT["messages"], "max_tokens": 200, "tools": [tool]}
    with Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        message = client.messages.create(**fields)
        with client.messages.stream(**fields) as stream:
            streamed = stream.get_final_message()
    for each in (message, streamed):
        thinking, text, call = (block.model_dump() for block in each.content)
        assert (thinking["type"], thinking["thinking"]) == ("thinking", "The fox?\nYes.")
        assert text["text"].strip() == "Hello world."
        assert (call["type"], call["name"], call["input"]) == ("tool_use", "look_up", {"word": "fox"})
        assert each.stop_reason == "tool_use"


def test_a_grammar_begins_behind_the_reasoning(server: FrontendServer) -> None:
    body = {"model": MODEL, "messages": CHAT["messages"], "max_tokens": 200}
    for extra in (
        {"response_format": {"type": "json_object"}},
        {"tools": [TOOL], "tool_choice": "required"},
        {"structured_outputs": {"regex": "a+"}},
    ):
        assert httpx.post(server.url + "/v1/chat/completions", json=body | extra).status_code == 200
        grammar = server.coordinator.submits[-1].grammar
        assert grammar is not None and (grammar.after, grammar.opened_by) == ("</think>", "<think>")
    completion = {"prompt": "Hello", "structured_outputs": {"regex": "a+"}}
    assert httpx.post(server.url + "/v1/completions", json=completion).status_code == 200
    grammar = server.coordinator.submits[-1].grammar
    assert grammar is not None and grammar.after == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Let me", ("</think>", "<think>")),
        ("<think>Hm", ("</think>", "")),
        ("<think>Hm</think>", ("", "")),
        ("<think>Hm</think> So " + "a" * 70, ("", "")),
    ],
)
def test_a_message_that_is_continued_says_how_far_its_reasoning_is(
    server: FrontendServer, text: str, expected: tuple[str, str]
) -> None:
    messages = [*CHAT["messages"], {"role": "assistant", "content": text}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 9, "response_format": {"type": "json_object"}}
    body |= {"continue_final_message": True, "add_generation_prompt": False}
    assert httpx.post(server.url + "/v1/chat/completions", json=body).status_code == 200
    grammar = server.coordinator.submits[-1].grammar
    assert grammar is not None and (grammar.after, grammar.opened_by) == expected


def test_deepseek_s_reasoning_begins_in_the_prompt_unless_a_message_is_continued() -> None:
    request = ChatRequest(messages=[ChatMessage("user", "Hello")])
    config: Any = SimpleNamespace(reasoning_parser="deepseek_r1")
    for continues, part in ((False, ReasoningPart("a")), (True, TextPart("a"))):
        request.continue_final_message = continues
        parsing = message_parsing(request, config, "So")
        assert parsing is not None and parsing.make().feed("a") == [part]


@pytest.mark.parametrize("parser", ["mistral", "hermes"])
def test_calls_that_must_be_made_have_ids_that_the_model_s_template_takes(parser: str) -> None:
    config: Any = SimpleNamespace(reasoning_parser=None, tool_call_parser=parser)
    named = {"type": "function", "function": {"name": "look_up"}}
    outputs: list[tuple[Any, str]] = [("required", '[{"name": "look_up", "parameters": {}}]'), (named, "{}")]
    for choice, output in outputs:
        body = {"messages": CHAT["messages"], "tools": [TOOL], "tool_choice": choice}
        request = msgspec.json.decode(msgspec.json.encode(body), type=ChatRequest)
        parsing = message_parsing(request, config, "")
        assert parsing is not None
        begin = parsing.make().feed(output)[0]
        assert isinstance(begin, ToolCallBegin)
        assert (len(begin.id) == 9 and begin.id.isalnum()) == (parser == "mistral")
