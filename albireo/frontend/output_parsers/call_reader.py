"""One tool call's JSON object, character by character: `{"name": "f", "arguments": {...}}`, in either order.

The arguments are passed on as they stand, so that pieces of a stream put together are what the model wrote. Each
character is looked at once.
"""

import json
import uuid
from enum import Enum, auto

from albireo.frontend.message_parts import Part, ToolCallArguments, ToolCallBegin

_WHITESPACE = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")


class _State(Enum):
    BEFORE = auto()
    KEY = auto()
    """Before a key, a comma or the end of the object."""
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    IN_VALUE = auto()
    DONE = auto()
    FAILED = auto()


class CallReader:
    """Reads one object. `raw` is all that it took, for whoever shows it as text because it is no call."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.raw = ""
        self.begun = False
        """The name is known, and `ToolCallBegin` was given."""
        self._state = _State.BEFORE
        self._key = ""
        self._token: list[str] = []
        """Characters of the key or value under way."""
        self._name: str | None = None
        self._arguments: list[str] = []
        """Those that were not passed on yet."""
        self._has_arguments = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def done(self) -> bool:
        return self._state is _State.DONE

    @property
    def failed(self) -> bool:
        """It is no call, or not JSON."""
        return self._state is _State.FAILED

    def feed(self, text: str) -> tuple[int, list[Part]]:
        """How many characters belong to the object (all, unless it ends or fails), and what they say."""
        used = 0
        while used < len(text) and self._state not in (_State.DONE, _State.FAILED):
            self._step(text[used])
            used += 1
        self.raw += text[:used]
        return used, self._take()

    def _take(self) -> list[Part]:
        parts: list[Part] = []
        if self._name is None or (self._state is _State.FAILED and not self.begun):
            return parts
        if not self.begun:
            self.begun = True
            parts.append(ToolCallBegin(self.index, new_call_id(), self._name))
        if self._arguments:
            parts.append(ToolCallArguments(self.index, "".join(self._arguments)))
            self._arguments.clear()
        if self._state is _State.DONE and not self._has_arguments:
            self._has_arguments = True
            parts.append(ToolCallArguments(self.index, "{}"))
        return parts

    def _step(self, char: str) -> None:
        match self._state:
            case _State.BEFORE:
                self._expect(char, "{", _State.KEY)
            case _State.KEY:
                self._step_key(char)
            case _State.IN_KEY:
                self._token.append(char)
                if self._ends_string(char):
                    self._key = self._decode() or ""
                    self._state = _State.COLON
            case _State.COLON:
                self._expect(char, ":", _State.VALUE)
            case _State.VALUE:
                if char not in _WHITESPACE:
                    self._begin_value(char)
            case _State.IN_VALUE:
                self._step_value(char)

    def _expect(self, char: str, wanted: str, then: _State) -> None:
        if char == wanted:
            self._state = then
        elif char not in _WHITESPACE:
            self._state = _State.FAILED

    def _step_key(self, char: str) -> None:
        if char == '"':
            self._token, self._escaped = [char], False
            self._state = _State.IN_KEY
        elif char == "}":
            self._state = _State.FAILED if self._name is None else _State.DONE
        elif char != "," and char not in _WHITESPACE:
            self._state = _State.FAILED

    def _begin_value(self, char: str) -> None:
        self._token, self._depth, self._in_string, self._escaped = [], 0, False, False
        self._state = _State.IN_VALUE
        if self._key in _ARGUMENTS:
            if char != "{" or self._has_arguments:
                self._state = _State.FAILED
                return
            self._has_arguments = True
        self._step_value(char)

    def _step_value(self, char: str) -> None:
        if not self._in_string and not self._depth and self._token and char in ",}" + _WHITESPACE:
            self._end_value()
            if self._state is _State.KEY:
                self._step_key(char)
            return
        (self._arguments if self._key in _ARGUMENTS else self._token).append(char)
        if self._in_string:
            if self._ends_string(char):
                self._in_string = False
                if not self._depth:
                    self._end_value()
        elif char == '"':
            self._in_string, self._escaped = True, False
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if self._depth <= 0:
                self._end_value()

    def _end_value(self) -> None:
        self._state = _State.KEY
        if self._key == "name":
            name = self._decode()
            if not name or self._name is not None:
                self._state = _State.FAILED
            self._name = name

    def _ends_string(self, char: str) -> bool:
        """Whether this character of a string is its closing quote."""
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            return True
        return False

    def _decode(self) -> str | None:
        """The string that has just been read; None where it is none."""
        try:
            value = json.loads("".join(self._token))
        except ValueError:
            return None
        return value if isinstance(value, str) else None


def new_call_id() -> str:
    return "call_" + uuid.uuid4().hex[:24]
