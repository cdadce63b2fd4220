"""The Responses API's words for a conversation -> ours."""

from collections.abc import Sequence
from typing import Final

from albireo.errors import RequestError
from albireo.frontend.grammar_fields import JsonSchemaFormat, ResponseFormat
from albireo.frontend.requests import ChatMessage, ChatRequest, refuse_unsupported
from albireo.frontend.responses.requests import ContentPart, InputItem, ResponsesRequest, TextFormat
from albireo.frontend.tool_fields import (
    CalledFunction,
    FunctionDefinition,
    FunctionReference,
    MessageToolCall,
    NamedToolChoice,
    Tool,
    ToolChoice,
)

LOGPROBS = "message.output_text.logprobs"
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_ITEM_FIELDS: Final = {
    "message": {"role", "content", "phase"},
    "function_call": {"call_id", "name", "arguments"},
    "function_call_output": {"call_id", "output"},
    "reasoning": {"content", "summary"},
}
"""What an item may have by its type; any may have `id` and `status`."""
_OWN_FIELDS: Final = sorted(set[str]().union(*_ITEM_FIELDS.values()))
_ITEM_TYPES: Final = "message, function_call, function_call_output or reasoning"


def chat_of_response(request: ResponsesRequest) -> ChatRequest:
    """The same as a chat. Raises RequestError."""
    _refuse(request)
    choice = request.tool_choice
    tool_choice: ToolChoice | None = (
        choice if choice is None or isinstance(choice, str)
        else NamedToolChoice("function", FunctionReference(choice.name))
    )  # fmt: skip
    wants_logprobs = LOGPROBS in (request.include or ())
    if request.top_logprobs and not wants_logprobs:
        raise RequestError(f"top_logprobs needs include to have {LOGPROBS}", field="top_logprobs")
    return ChatRequest(
        model=request.model,
        messages=_messages(request),
        max_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=request.seed,
        stop=request.stop,
        stream=request.stream,
        logprobs=wants_logprobs,
        top_logprobs=request.top_logprobs if wants_logprobs else None,
        tools=[
            Tool("function", FunctionDefinition(tool.name, tool.description, tool.parameters, tool.strict))
            for tool in request.tools
        ] if request.tools else None,
        tool_choice=tool_choice,
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_response_format(request),
        reasoning_effort=None if request.reasoning is None else request.reasoning.effort,
    )  # fmt: skip


def call_arguments(request: ResponsesRequest) -> list[str]:
    """The paths of the arguments of the conversation's calls, in order."""
    if isinstance(request.input, str):
        return []
    return [f"input[{index}].arguments" for index, item in enumerate(request.input) if item.type == "function_call"]


def _refuse(request: ResponsesRequest) -> None:
    refuse_unsupported(request)
    for name in ("text", "reasoning", "stream_options"):
        options = getattr(request, name)
        if options is not None:
            refuse_unsupported(options, f"{name}.")
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options is for streams: set stream to true", field="stream_options")


def _response_format(request: ResponsesRequest) -> ResponseFormat | None:
    format_ = None if request.text is None else request.text.format
    if format_ is None:
        return None
    if format_.type != "json_schema":
        return ResponseFormat(format_.type)
    return ResponseFormat("json_schema", _json_schema(format_))


def _json_schema(format_: TextFormat) -> JsonSchemaFormat:
    if format_.name is None:
        field = "text.format.name"
        raise RequestError(f"{field} is missing", field=field, code="missing_required_parameter")
    return JsonSchemaFormat(format_.name, format_.schema, format_.description, format_.strict)


def _messages(request: ResponsesRequest) -> list[ChatMessage]:
    messages = [] if request.instructions is None else [ChatMessage("system", request.instructions)]
    if isinstance(request.input, str):
        return [*messages, ChatMessage("user", request.input)]
    thoughts: dict[int, list[str]] = {}
    """By message: items of their own here, a part of the assistant's message there."""
    new: list[str] = []
    """Those that have no message yet."""
    for index, item in enumerate(request.input):
        path = f"input[{index}]"
        _check_fields(item, path)
        if item.type == "reasoning":
            name = "content" if item.content else "summary"
            new.append(_text(getattr(item, name) or "", f"{path}.{name}"))
            continue
        message = _message(item, path)
        if message.role == "assistant":
            _add_assistant(message, messages)
            _move(new, thoughts, messages)
        else:
            _move(new, thoughts, messages)
            messages.append(message)
    _move(new, thoughts, messages)
    for index, of_message in thoughts.items():
        messages[index].reasoning = "\n".join(of_message)
    return messages


def _move(new: list[str], thoughts: dict[int, list[str]], messages: list[ChatMessage]) -> None:
    """New thoughts to the last message or, where that is not the assistant's, to one that says nothing else."""
    if any(new):
        if not messages or messages[-1].role != "assistant":
            messages.append(ChatMessage("assistant", ""))
        thoughts.setdefault(len(messages) - 1, []).extend(filter(None, new))
    new.clear()


def _add_assistant(message: ChatMessage, messages: list[ChatMessage]) -> None:
    """Calls are items of their own here, and a part of the message before them there."""
    if message.tool_calls and messages and messages[-1].role == "assistant":
        if messages[-1].tool_calls is None:
            messages[-1].tool_calls = []
        messages[-1].tool_calls += message.tool_calls
    else:
        messages.append(message)


def _message(item: InputItem, path: str) -> ChatMessage:
    if item.type == "message":
        _need(item, path, "role", "content")
        return ChatMessage(item.role or "", _text(item.content or "", f"{path}.content"))
    if item.type == "function_call":
        _need(item, path, "call_id", "name", "arguments")
        function = CalledFunction(item.name or "", item.arguments or "")
        return ChatMessage("assistant", "", tool_calls=[MessageToolCall(item.call_id or "", function)])
    _need(item, path, "call_id", "output")
    return ChatMessage("tool", _text(item.output or "", f"{path}.output"), tool_call_id=item.call_id)


def _check_fields(item: InputItem, path: str) -> None:
    """Raises RequestError for an item of another type than ours, and for a field that is of another type of item."""
    of_type = _ITEM_FIELDS.get(item.type)
    if of_type is None:
        field = f"{path}.type"
        raise RequestError(f"{field} must be {_ITEM_TYPES}: this server takes nothing else", field=field)
    refuse_unsupported(item, f"{path}.")
    for name in _OWN_FIELDS:
        if name not in of_type and getattr(item, name) is not None:
            field = f"{path}.{name}"
            raise RequestError(f"{field} is not a field of items of type {item.type}", field=field)


def _need(item: InputItem, path: str, *names: str) -> None:
    for name in names:
        if getattr(item, name) is None:
            raise RequestError(f"{path}.{name} is missing", field=f"{path}.{name}", code="missing_required_parameter")


def _text(content: str | Sequence[ContentPart], path: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        field = f"{path}[{index}]"
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in (*_TEXTS, "refusal"):
            raise RequestError(f"{field}.type must be a text's: this server takes no other parts", f"{field}.type")
        if text is None:
            raise RequestError(f"{field}.text is missing", f"{field}.text", code="missing_required_parameter")
        texts.append(text)
    return "\n".join(texts)
