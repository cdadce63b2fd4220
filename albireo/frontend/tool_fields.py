"""`tools` and `tool_choice`: what a client offers the model to call, and whether it must."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from albireo import limits
from albireo.errors import RequestError
from albireo.frontend.grammar_fields import schema_grammar
from albireo.messages import Grammar

FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.\-]{1,128}$")]
Description = Annotated[str, Meta(max_length=limits.MAX_DESCRIPTION_CHARS)]
CallId = Annotated[str, Meta(min_length=1, max_length=limits.MAX_NAME_CHARS)]
_NOT_GIVEN: Raw = msgspec.field(default_factory=Raw)


class FunctionDefinition(Struct, forbid_unknown_fields=True):
    """A function that the model may call."""

    name: FunctionName
    description: Description | None = None
    parameters: Raw = _NOT_GIVEN
    """A JSON schema of an object; without one the function takes nothing."""
    strict: bool | None = None
    """Calls that must be made always match; those that the model makes of itself are as it writes them."""


class Tool(Struct, forbid_unknown_fields=True):
    """An entry of `tools`."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionReference(Struct, forbid_unknown_fields=True):
    name: str


class NamedToolChoice(Struct, forbid_unknown_fields=True):
    """This function must be called."""

    type: Literal["function"]
    function: FunctionReference


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


class CalledFunction(Struct, forbid_unknown_fields=True):
    """A call in the conversation so far."""

    name: FunctionName
    arguments: Annotated[str, Meta(max_length=limits.MAX_GRAMMAR_CHARS)]
    """JSON of an object."""


class MessageToolCall(Struct, forbid_unknown_fields=True):
    """An entry of an assistant message's `tool_calls`."""

    id: CallId
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None
    """As streams have it; of no meaning here."""


class ToolUse(Struct, frozen=True):
    """What a request offers and wants."""

    tools: Sequence[Tool]
    choice: Literal["none", "auto", "required", "named"]
    name: str | None = None
    """Of the function that must be called, where the choice is `named`."""
    parallel: bool = True


def tool_use(tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None) -> ToolUse | None:
    """None where no tool is offered. Raises RequestError for what does not go together."""
    if not tools:
        if choice is not None and choice not in ("none", "auto"):
            raise RequestError("tool_choice needs tools", field="tool_choice")
        return None
    names = [tool.function.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            field = f"tools[{index}].function.name"
            raise RequestError(f"{field} is given twice: {name}", field=field)
    if not isinstance(choice, NamedToolChoice):
        return ToolUse(tools, choice or "auto", None, parallel is not False)
    if choice.function.name not in names:
        field = "tool_choice.function.name"
        known = ", ".join(names)[: limits.MAX_ECHO_CHARS]
        raise RequestError(f"{field} must be one of the tools: {known}", field=field)
    return ToolUse(tools, "named", choice.function.name, parallel=False)


def template_tools(use: ToolUse) -> list[dict[str, Any]]:
    """As chat templates know them. Raises RequestError."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.function.name,
                "description": tool.function.description or "",
                "parameters": _parameters(tool, f"tools[{index}].function.parameters"),
            },
        }
        for index, tool in enumerate(use.tools)
    ]


def calls_grammar(use: ToolUse) -> Grammar | None:
    """What the output must match where a call must be made: a list of calls, or a named function's arguments."""
    schemas = {
        tool.function.name: _parameters(tool, f"tools[{index}].function.parameters")
        for index, tool in enumerate(use.tools)
    }
    if use.choice == "named":
        assert use.name is not None
        return schema_grammar(schemas[use.name], "tool_choice")
    if use.choice != "required":
        return None
    definitions: dict[str, Any] = {}
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "parameters": _without_definitions(schema, definitions, name)},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for name, schema in schemas.items()
    ]
    wanted: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if not use.parallel:
        wanted["maxItems"] = 1
    if definitions:
        wanted["$defs"] = definitions
    return schema_grammar(wanted, "tools")


def _parameters(tool: Tool, field: str) -> dict[str, Any]:
    raw = tool.function.parameters
    schema: Any = {} if raw in (Raw(), Raw(b"null")) else msgspec.json.decode(raw)
    if not isinstance(schema, dict):
        raise RequestError(f"{field} must be a JSON schema, which is an object", field=field)
    if schema.get("type", "object") != "object":
        raise RequestError(f"{field}.type must be object", field=f"{field}.type")
    return {"type": "object", "properties": {}} | schema


def _without_definitions(schema: dict[str, Any], all_: dict[str, Any], name: str) -> dict[str, Any]:
    """The schema without its `$defs`, which go to the whole's: references are from the root."""
    for key in ("$defs", "definitions"):
        definitions = schema.get(key, {})
        if not isinstance(definitions, dict):
            raise RequestError(f"tools: {name} has {key} that is no object", "tools")
        for label, definition in definitions.items():
            if key == "definitions" or all_.setdefault(label, definition) != definition:
                field = "tools"
                raise RequestError(f"{field}: {name} has {key}.{label}, which cannot be put beside the others'", field)
    return {key: value for key, value in schema.items() if key not in ("$defs", "definitions")}
