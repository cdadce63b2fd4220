"""The Responses API's words for a conversation -> ours."""

from collections.abc import Sequence

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
    thought: str | None = None
    """Of the assistant's next message: an item of its own here, a part of the message there."""
    for index, item in enumerate(request.input):
        path = f"input[{index}]"
        refuse_unsupported(item, f"{path}.")
        if item.type == "reasoning":
            thought = _text(item.content or item.summary or "", f"{path}.content")
            continue
        message = _message(item, path)
        if message.role == "assistant":
            message.reasoning, thought = thought, None
            if message.tool_calls and messages and messages[-1].role == "assistant":
                messages[-1].tool_calls = [*(messages[-1].tool_calls or ()), *message.tool_calls]
                continue
        messages.append(message)
    return messages


def _message(item: InputItem, path: str) -> ChatMessage:
    if item.type == "message":
        _need(item, path, "role", "content")
        return ChatMessage(item.role or "", _text(item.content or "", f"{path}.content"))
    if item.type == "function_call":
        _need(item, path, "call_id", "name", "arguments")
        function = CalledFunction(item.name or "", item.arguments or "")
        return ChatMessage("assistant", "", tool_calls=[MessageToolCall(item.call_id or "", function)])
    if item.type == "function_call_output":
        _need(item, path, "call_id", "output")
        return ChatMessage("tool", _text(item.output or "", f"{path}.output"), tool_call_id=item.call_id)
    field = f"{path}.type"
    raise RequestError(
        f"{field} must be message, function_call, function_call_output or reasoning: this server takes nothing else",
        field=field,
    )


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
