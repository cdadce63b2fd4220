"""What msgspec does not refuse in a JSON body: too deep, too many values, the same key twice.

Deep nesting would be a RecursionError in the parser. A key given twice means that a proxy in front of us may have
checked another value than the one we act on.
"""

import re

import msgspec

from albireo import limits
from albireo.errors import RequestError

_TOKEN = re.compile(
    rb'[^"{}\[\]]*+(?:"([^"\\]*+(?:\\.[^"\\]*+)*+)(?:"(\s*+:)?|\\?+\Z)|([{}\[\]])|\Z)',
    re.DOTALL,
)
"""Numbers and punctuation, then a string (with the colon behind it where it is a key) or a bracket.

Every position of the body is passed once: all repeats are possessive, and an unterminated string or a tail without
brackets matches up to the end rather than being tried again from its next byte."""


def check_structure(body: bytes) -> None:
    """Raises RequestError for nesting beyond MAX_JSON_DEPTH, more than MAX_JSON_VALUES strings and brackets, or a
    duplicate key. Malformed JSON passes: the decoder says better what is wrong with it."""
    open_objects: list[set[bytes] | None] = []
    for count, token in enumerate(_TOKEN.finditer(body)):
        if count >= limits.MAX_JSON_VALUES:
            raise RequestError(f"the body has more than {limits.MAX_JSON_VALUES} JSON values")
        key, colon, bracket = token.groups()
        if bracket is not None:
            _bracket(bracket, open_objects)
        elif colon is not None and open_objects and (keys := open_objects[-1]) is not None:
            _add_key(key, keys)


def _bracket(bracket: bytes, open_objects: list[set[bytes] | None]) -> None:
    if bracket in (b"{", b"["):
        if len(open_objects) == limits.MAX_JSON_DEPTH:
            raise RequestError(f"the body is nested deeper than {limits.MAX_JSON_DEPTH} levels")
        open_objects.append(set() if bracket == b"{" else None)
    elif open_objects:
        open_objects.pop()


def _add_key(key: bytes, keys: set[bytes]) -> None:
    if b"\\" in key:  # "a" may also be written "\u0061"
        try:
            key = msgspec.json.decode(b'"' + key + b'"', type=str).encode()
        except msgspec.DecodeError:
            return
    if key in keys:
        name = key[: limits.MAX_ECHO_CHARS].decode(errors="replace")
        raise RequestError(f"{name}: the key is given twice", field=name)
    keys.add(key)
