"""`response_format` and `structured_outputs` -> the grammar that the output must match.

What is written here bounds a grammar's size before anything is sent on; whether it compiles is the grammar process's to
say, and its answer becomes the client's 400 too.
"""

import json
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from albireo import limits
from albireo.errors import RequestError
from albireo.messages import Grammar

Choice = Annotated[str, Meta(min_length=1, max_length=limits.MAX_CHOICE_CHARS)]
Source = Annotated[str, Meta(min_length=1, max_length=limits.MAX_GRAMMAR_CHARS)]
Pattern = Annotated[str, Meta(min_length=1, max_length=limits.MAX_REGEX_CHARS)]


_NOT_GIVEN: Raw = msgspec.field(default_factory=Raw)
_ABSENT = (Raw(), Raw(b"null"))


class JsonSchemaFormat(Struct, forbid_unknown_fields=True):
    """OpenAI's `json_schema`."""

    name: Annotated[str, Meta(min_length=1, max_length=limits.MAX_NAME_CHARS)]
    schema: Raw = _NOT_GIVEN
    description: Annotated[str, Meta(max_length=limits.MAX_DESCRIPTION_CHARS)] | None = None
    strict: bool | None = None
    """The output always matches, whatever this says."""


class ResponseFormat(Struct, forbid_unknown_fields=True):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """vLLM's `structured_outputs`: exactly one of these."""

    json: Raw = _NOT_GIVEN
    """A schema, as an object or as a text that holds one."""
    regex: Pattern | None = None
    choice: Annotated[list[Choice], Meta(min_length=1, max_length=limits.MAX_CHOICES)] | None = None
    grammar: Source | None = None
    json_object: bool | None = None


def requested_grammar(format_: ResponseFormat | None, structured: StructuredOutputs | None) -> Grammar | None:
    """What the output must match, or None. Raises RequestError for fields that do not go together or are too large."""
    of_format = None if format_ is None else _of_response_format(format_)
    of_structured = None if structured is None else _of_structured_outputs(structured)
    if of_format is not None and of_structured is not None:
        field = "structured_outputs"
        raise RequestError(f"{field} and response_format must not both constrain the output", field=field)
    return of_format or of_structured


def schema_grammar(schema: object, field: str) -> Grammar:
    """Of a JSON schema, within the bounds on its size. Raises RequestError."""
    _check_schema(schema, field)
    source = json.dumps(schema)
    if len(source) > limits.MAX_GRAMMAR_CHARS:
        raise RequestError(f"{field} must have at most {limits.MAX_GRAMMAR_CHARS} characters as JSON", field=field)
    return Grammar("json_schema", source, field)


def _of_response_format(format_: ResponseFormat) -> Grammar | None:
    if format_.json_schema is not None and format_.type != "json_schema":
        field = "response_format.json_schema"
        raise RequestError(f"{field} needs response_format.type to be json_schema", field=field)
    if format_.type == "text":
        return None
    if format_.type == "json_object":
        return schema_grammar({"type": "object"}, "response_format")
    field = "response_format.json_schema"
    if format_.json_schema is None:
        raise RequestError(f"{field} is missing", field=field, code="missing_required_parameter")
    field += ".schema"
    if format_.json_schema.schema in _ABSENT:
        raise RequestError(f"{field} is missing", field=field, code="missing_required_parameter")
    return schema_grammar(msgspec.json.decode(format_.json_schema.schema), field)


def _of_structured_outputs(structured: StructuredOutputs) -> Grammar | None:
    values = {name: getattr(structured, name) for name in structured.__struct_fields__}
    given = [name for name, value in values.items() if value not in (None, False, *_ABSENT)]
    if not given:
        return None
    if len(given) > 1:
        field = f"structured_outputs.{given[1]}"
        raise RequestError(f"{field} does not go together with {given[0]}: one kind at a time", field=field)
    kind, field = given[0], f"structured_outputs.{given[0]}"
    value: Any = values[kind]
    if kind == "json":
        return schema_grammar(_schema_or_text(value, field), field)
    if kind == "json_object":
        return schema_grammar({"type": "object"}, field)
    if kind == "choice":
        return Grammar("lark", choice_lark(value), field)
    return Grammar("regex" if kind == "regex" else "lark", value, field)


def choice_lark(choices: list[str]) -> str:
    """One of the texts, as they stand. JSON's quoting is Lark's."""
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in dict.fromkeys(choices))


def _schema_or_text(raw: Raw, field: str) -> object:
    schema = msgspec.json.decode(raw)
    if not isinstance(schema, str):
        return schema
    try:
        return msgspec.json.decode(schema)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(f"{field} must be a JSON schema: {error}", field=field) from error


def _check_schema(schema: object, field: str) -> None:
    """Without recursion: depth is what is being counted."""
    if not isinstance(schema, dict):
        raise RequestError(f"{field} must be a JSON schema, which is an object", field=field)
    level: list[object] = [schema]
    num_values, depth = 0, 0
    while level:
        depth += 1
        num_values += len(level)
        if depth > limits.MAX_SCHEMA_DEPTH:
            raise RequestError(f"{field} must be at most {limits.MAX_SCHEMA_DEPTH} levels deep", field=field)
        if num_values > limits.MAX_SCHEMA_VALUES:
            raise RequestError(f"{field} must have at most {limits.MAX_SCHEMA_VALUES} values", field=field)
        level = [child for value in level for child in _children(value)]


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
