"""JSON body -> typed request, or a 400 that names the field and its bound in words a client's author knows."""

import re
from typing import TypeVar

import msgspec
from msgspec import Struct

from albireo import limits
from albireo.errors import RequestError
from albireo.frontend.json_guard import check_structure
from albireo.frontend.requests import GenerationRequest, refuse_unsupported

B = TypeVar("B", bound=Struct)
R = TypeVar("R", bound=GenerationRequest)

_TYPES = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_PATH = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_NOT_FINITE = re.compile(rb'"([^"\\]{1,64})"\s*:\s*\[?\s*-?(?:NaN|Infinity|inf|nan)\b')
_TOO_LARGE = re.compile(rb'"([^"\\]{1,64})"\s*:[\s\[]*-?[0-9.]*(?:[eE]\+?[0-9]{3}|(?<=[0-9]{300}))')


def decode_request(body: bytes, decoder: msgspec.json.Decoder[R]) -> R:
    """Raises RequestError for everything that is wrong with the body by itself."""
    request = decode_body(body, decoder)
    refuse_unsupported(request)
    if request.stream_options is not None:
        if not request.stream:
            raise RequestError("stream_options is for streams: set stream to true", field="stream_options")
        refuse_unsupported(request.stream_options, "stream_options.")
    return request


def decode_body(body: bytes, decoder: msgspec.json.Decoder[B]) -> B:
    """A JSON body as its type. Raises RequestError."""
    try:
        body.decode()  # msgspec checks the strings that it decodes, not those that it skips
        check_structure(body)
        decoded = decoder.decode(body)
        _check_skipped(body)
        return decoded
    except UnicodeDecodeError as error:
        raise RequestError("the body is not valid UTF-8") from error
    except msgspec.ValidationError as error:
        raise _validation_error(str(error)) from error
    except msgspec.DecodeError as error:
        raise _syntax_error(body, str(error)) from error


def _check_skipped(body: bytes) -> None:
    """What a type keeps as it came (`Raw`) msgspec has skipped, with numbers that it would refuse to read later, when
    nobody expects a 400 any more. Raises RequestError, msgspec.DecodeError."""
    try:
        msgspec.json.decode(body)
    except msgspec.ValidationError as error:
        match = _TOO_LARGE.search(body)
        field = match.group(1).decode() if match else None
        raise RequestError(f"{field or 'a number'} must be within the range of a 64-bit float", field=field) from error


def _syntax_error(body: bytes, text: str) -> RequestError:
    if not body.strip():
        return RequestError("the body is empty; expected a JSON object")
    if match := _NOT_FINITE.search(body):
        field = match.group(1).decode()
        return RequestError(f"{field} must be a finite number: JSON has no NaN or Infinity", field=field)
    hint = " (is there half of a surrogate pair, a lone \\ud800-\\udfff?)" if b"\\ud" in body.lower() else ""
    return RequestError(f"the body is not valid JSON: {text}{hint}")


def _validation_error(text: str) -> RequestError:
    """From msgspec's wording ("Expected `int` >= 1 - at `$.n`") to ours ("n must be at least 1")."""
    match = _PATH.search(text)
    path = match.group(1)[: limits.MAX_ECHO_CHARS] if match else ""
    reason = text[: match.start()] if match else text
    if named := re.match(r"Object (missing required|contains unknown) field `(.*)`", reason):
        name = named.group(2)[: limits.MAX_ECHO_CHARS]
        field = f"{path}.{name}" if path else name
        if named.group(1) == "missing required":
            return RequestError(f"{field} is missing", field=field, code="missing_required_parameter")
        return RequestError(f"{field} is not a field that this server knows", field=field, code="unknown_parameter")
    return RequestError(f"{path or 'the body'} {_reason(reason)}", field=path or None)


def _reason(text: str) -> str:
    if text == "Number out of range":
        return "must be a finite number"
    if bound := re.fullmatch(r"Expected `(\w+)` of length (>=|<=) (\d+)", text):
        unit = {"str": "characters", "array": "entries", "object": "entries"}[bound.group(1)]
        return f"must have at {'least' if bound.group(2) == '>=' else 'most'} {bound.group(3)} {unit}"
    if bound := re.fullmatch(r"Expected `\w+` (>=|<=|>|<) (\S+)", text):
        words = {">=": "at least", "<=": "at most", ">": "above", "<": "below"}[bound.group(1)]
        return f"must be {words} {bound.group(2)}"
    if wrong := re.fullmatch(r"Expected `(.*)`, got `(\w+)`", text):
        wanted = [_TYPES.get(name, name) for name in wrong.group(1).split(" | ") if name != "null"] or ["null"]
        return f"must be {' or '.join(wanted)}, not {_TYPES.get(wrong.group(2), wrong.group(2))}"
    return f"is not valid: {text}"
