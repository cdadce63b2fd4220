"""Anthropic's words for a conversation -> ours."""

from collections.abc import Sequence

import msgspec
from msgspec import Raw

from albireo.errors import RequestError
from albireo.frontend.anthropic.requests import (
    AnthropicMessage,
    AnthropicTool,
    AnthropicToolChoice,
    CountTokensRequest,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from albireo.frontend.requests import ChatMessage, ChatRequest, refuse_unsupported
from albireo.frontend.tool_fields import (
    CalledFunction,
    FunctionDefinition,
    FunctionReference,
    MessageToolCall,
    NamedToolChoice,
    Tool,
    ToolChoice,
)


def chat_of_messages(request: MessagesRequest, knows_thinking: bool) -> ChatRequest:
    """The same as a chat. `knows_thinking`: the template reads `enable_thinking`. Raises RequestError."""
    chat = chat_of_prompt(request, knows_thinking)
    chat.max_tokens = request.max_tokens
    chat.temperature, chat.top_p, chat.top_k = request.temperature, request.top_p, request.top_k
    chat.stop = request.stop_sequences
    chat.stream = request.stream
    return chat


def chat_of_prompt(request: CountTokensRequest, knows_thinking: bool) -> ChatRequest:
    """What makes the prompt of it."""
    refuse_unsupported(request)
    messages: list[ChatMessage] = []
    if request.system is not None:
        messages.append(ChatMessage("system", _text(request.system, "system")))
    for index, message in enumerate(request.messages):
        messages += _messages(message, f"messages[{index}]")
    choice = request.tool_choice
    chat = ChatRequest(
        model=request.model,
        messages=messages,
        tools=[_tool(tool) for tool in request.tools] if request.tools else None,
        tool_choice=None if choice is None else _tool_choice(choice),
        parallel_tool_calls=None if choice is None or not choice.disable_parallel_tool_use else False,
    )
    if request.thinking is not None and knows_thinking:
        chat.chat_template_kwargs = {"enable_thinking": request.thinking.type != "disabled"}
    return chat


def call_inputs(request: CountTokensRequest) -> list[str]:
    """The paths of the inputs of the conversation's calls, in order."""
    return [
        f"messages[{index}].content[{number}].input"
        for index, message in enumerate(request.messages)
        for number, block in enumerate(message.content)
        if isinstance(block, ToolUseBlock)
    ]


def _text(content: str | Sequence[TextBlock], path: str) -> str:
    if isinstance(content, str):
        return content
    for index, block in enumerate(content):
        refuse_unsupported(block, f"{path}[{index}].")
    return "\n".join(block.text for block in content)


def _messages(message: AnthropicMessage, path: str) -> list[ChatMessage]:
    """Results of tools come first, as messages of their own: they answer the turn before."""
    if isinstance(message.content, str):
        return [ChatMessage(message.role, message.content)]
    results, texts, thoughts, calls = [], [], [], []
    for index, block in enumerate(message.content):
        field = f"{path}.content[{index}]"
        match block:
            case TextBlock():
                texts.append(_text([block], f"{path}.content"))
            case ToolResultBlock():
                _check_role(message, "user", field)
                text = _text(block.content or "", f"{field}.content")
                text = f"Error: {text}" if block.is_error else text
                results.append(ChatMessage("tool", text, tool_call_id=block.tool_use_id))
            case ToolUseBlock():
                _check_role(message, "assistant", field)
                arguments = bytes(block.input).decode()
                calls.append(MessageToolCall(block.id, CalledFunction(block.name, arguments)))
            case ThinkingBlock():
                _check_role(message, "assistant", field)
                thoughts.append(block.thinking)
    if results and not texts:
        return results
    text = "\n".join(texts)
    return [
        *results,
        ChatMessage(message.role, text, reasoning="\n".join(thoughts) or None, tool_calls=calls or None),
    ]


def _check_role(message: AnthropicMessage, role: str, field: str) -> None:
    if message.role != role:
        raise RequestError(f"{field} is for {role} messages", field=field)


def _tool(tool: AnthropicTool) -> Tool:
    return Tool("function", FunctionDefinition(tool.name, tool.description, Raw(bytes(tool.input_schema))))


def _tool_choice(choice: AnthropicToolChoice) -> ToolChoice:
    if choice.type == "tool":
        if choice.name is None:
            field = "tool_choice.name"
            raise RequestError(f"{field} is missing", field=field, code="missing_required_parameter")
        return NamedToolChoice("function", FunctionReference(choice.name))
    if choice.name is not None:
        raise RequestError("tool_choice.name needs tool_choice.type to be tool", field="tool_choice.name")
    kinds: dict[str, ToolChoice] = {"auto": "auto", "any": "required", "none": "none"}
    return kinds[choice.type]


def json_object(text: str) -> object:
    """A call's arguments as an object; what the model left unfinished stays a text in one."""
    try:
        return msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        return {"unfinished": text}
