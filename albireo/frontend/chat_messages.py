"""A chat request's messages as chat templates know them."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from albireo.errors import RequestError
from albireo.frontend.json_guard import check_structure
from albireo.frontend.requests import ChatMessage, refuse_unsupported
from albireo.frontend.tool_fields import MessageToolCall

ROLES: Final = ("system", "developer", "user", "assistant", "tool")


def plain_message(message: ChatMessage, path: str) -> dict[str, Any]:
    """What the template sees of a message: role, content as one text, and what else there is. Raises RequestError."""
    if message.role == "function":
        raise RequestError(f"{path}.role: function messages are not supported: use tool", field=f"{path}.role")
    if message.role not in ROLES:
        raise RequestError(f"{path}.role must be one of {', '.join(ROLES)}", field=f"{path}.role")
    refuse_unsupported(message, f"{path}.")
    _check_tool_fields(message, path)
    if message.content is None and not message.tool_calls:
        raise RequestError(f"{path}.content is missing", field=f"{path}.content", code="missing_required_parameter")
    plain: dict[str, Any] = {"role": message.role, "content": _content_text(message, path)}
    thought = message.reasoning_content if message.reasoning is None else message.reasoning
    optional = {"name": message.name, "tool_call_id": message.tool_call_id, "reasoning_content": thought or None}
    plain |= {key: value for key, value in optional.items() if value is not None}
    if message.tool_calls:
        plain["tool_calls"] = [
            _template_call(call, f"{path}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls)
        ]
    return plain


def _check_tool_fields(message: ChatMessage, path: str) -> None:
    if message.role == "tool" and message.tool_call_id is None:
        field = f"{path}.tool_call_id"
        raise RequestError(f"{field} is missing", field=field, code="missing_required_parameter")
    of_roles = {"tool_call_id": "tool", "tool_calls": "assistant", "reasoning": "assistant"}
    for name, role in (of_roles | {"reasoning_content": "assistant"}).items():
        if getattr(message, name) and message.role != role:
            raise RequestError(f"{path}.{name} is for {role} messages", field=f"{path}.{name}")


def _template_call(call: MessageToolCall, path: str) -> dict[str, Any]:
    """Templates write the arguments themselves, so they get them as an object."""
    field = f"{path}.function.arguments"
    text = call.function.arguments or "{}"
    try:
        check_structure(text.encode())  # its depth, before anything recurses
        arguments = msgspec.json.decode(text)
    except (msgspec.DecodeError, RequestError) as error:
        raise RequestError(f"{field} is not valid JSON: {error}", field=field) from error
    if not isinstance(arguments, dict):
        raise RequestError(f"{field} must be JSON of an object", field=field)
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _content_text(message: ChatMessage, path: str) -> str:
    """Parts are joined by line ends, as vLLM does for templates that want a text."""
    if not isinstance(message.content, list):
        return message.content or ""
    texts = []
    for index, part in enumerate(message.content):
        field = f"{path}.content[{index}]"
        if part.type != "text":
            raise RequestError(f"{field}.type must be text: this server takes no other parts", field=f"{field}.type")
        refuse_unsupported(part, f"{field}.")
        if part.text is None:
            raise RequestError(f"{field}.text is missing", field=f"{field}.text", code="missing_required_parameter")
        texts.append(part.text)
    return "\n".join(texts)


def strings_in(value: object) -> Iterator[str]:
    """Every text in nested lists, tuples and dicts, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from strings_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from strings_in(each)


def map_strings(value: Any, change: Callable[[str], str]) -> Any:  # noqa: ANN401  (JSON)
    """The same with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): map_strings(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [map_strings(each, change) for each in value]
    return value
