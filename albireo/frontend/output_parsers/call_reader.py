"""One tool call's JSON object, character by character: `{"name": "f", "arguments": {...}}`, in either order.

The arguments are passed on as they stand, so that pieces of a stream put together are what the model wrote. Each
character is looked at once. What cannot be taken back is said only once it is sure: a call has begun when its name is
known to be a tool's and its arguments are an object, or when it ends without any.
"""

from collections.abc import Set
from enum import Enum, auto

import msgspec

from albireo.frontend.message_parts import Part, ToolCallArguments, ToolCallBegin
from albireo.frontend.output_parsers.call_ids import NewCallId, new_call_id
from albireo.frontend.output_parsers.json_object import ObjectReader

_WHITESPACE = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")


class _State(Enum):
    BEFORE = auto()
    KEY = auto()
    """Before a key, a comma or the end of the object."""
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    IN_STRING = auto()
    IN_WORD = auto()
    """In a number, true, false or null."""
    IN_OBJECT = auto()
    DONE = auto()
    UNCLOSED = auto()
    """A whole call, whose closing brace is missing."""
    FAILED = auto()


_ENDED = (_State.DONE, _State.UNCLOSED, _State.FAILED)


class CallReader:
    """Reads one object. `raw` is all that it took until the call began, to be shown as text where it is no call."""

    def __init__(
        self, index: int, names: Set[str], needs_arguments: bool = False, new_id: NewCallId = new_call_id
    ) -> None:
        """`names`: of the tools. `needs_arguments`: an object that has no key for them is no call."""
        self._new_id = new_id
        self.index = index
        self.raw = ""
        self.begun = False
        """It is a call, whatever comes."""
        self._names = names
        self._needs_arguments = needs_arguments
        self._state = _State.BEFORE
        self._key = ""
        self._token: list[str] = []
        """Characters of the key, string or word under way."""
        self._escaped = False
        self._object = ObjectReader()
        self._name: str | None = None
        self._arguments: list[str] = []
        """Those that were not passed on yet."""
        self._has_arguments = False
        """There is a key for them; null is its value where `_are_object` stays False."""
        self._are_object = False
        self._told = False
        """`ToolCallBegin` was given."""

    @property
    def done(self) -> bool:
        return self._state in (_State.DONE, _State.UNCLOSED)

    @property
    def failed(self) -> bool:
        """It is no call, or one that broke off."""
        return self._state is _State.FAILED

    def feed(self, text: str) -> tuple[int, list[Part]]:
        """How many characters belong to the object (all, unless it ends or fails), and what they say."""
        used = 0
        while used < len(text) and self._state not in _ENDED:
            if self._state is _State.IN_OBJECT:
                used += self._feed_object(text[used:])
                continue
            self._step(text[used])
            if self._state not in (_State.UNCLOSED, _State.FAILED):
                used += 1
        if not self._told:
            self.raw += text[:used]
        return used, self._take()

    def _take(self) -> list[Part]:
        parts: list[Part] = []
        if self.begun and not self._told:
            assert self._name is not None
            self._told = True
            parts.append(ToolCallBegin(self.index, self._new_id(), self._name))
        if self.begun and self._arguments:
            parts.append(ToolCallArguments(self.index, "".join(self._arguments)))
            self._arguments.clear()
        return parts

    def _feed_object(self, text: str) -> int:
        used = self._object.feed(text)
        if used and self._key in _ARGUMENTS:
            self._arguments.append(text[:used])
        if self._object.done:
            self._state = _State.KEY
        elif self._object.failed:
            self._state = _State.FAILED
        return used

    def _step(self, char: str) -> None:
        match self._state:
            case _State.BEFORE:
                self._expect(char, "{", _State.KEY)
            case _State.KEY:
                self._step_key(char)
            case _State.IN_KEY:
                if self._ends_string(char):
                    self._key = self._decode() or ""
                    self._state = _State.COLON
            case _State.COLON:
                self._expect(char, ":", _State.VALUE)
            case _State.VALUE:
                if char not in _WHITESPACE:
                    self._begin_value(char)
            case _State.IN_STRING:
                if self._ends_string(char):
                    self._end_value()
            case _State.IN_WORD:
                self._step_word(char)

    def _expect(self, char: str, wanted: str, then: _State) -> None:
        if char == wanted:
            self._state = then
        elif char not in _WHITESPACE:
            self._state = _State.FAILED

    def _step_key(self, char: str) -> None:
        if char == '"':
            self._token = [char]
            self._state = _State.IN_KEY
        elif char == "}":
            self._end_object()
        elif char != "," and char not in _WHITESPACE:
            self._state = _State.UNCLOSED if self.begun else _State.FAILED

    def _end_object(self) -> None:
        if self._name is None or (self._needs_arguments and not self._has_arguments):
            self._state = _State.FAILED
            return
        self._state = _State.DONE
        if not self.begun:
            self.begun = True
            self._arguments = ["{}"]

    def _begin_value(self, char: str) -> None:
        is_name, are_arguments = self._key == "name", self._key in _ARGUMENTS
        if (is_name and (char != '"' or self._name is not None)) or (are_arguments and self._has_arguments):
            self._state = _State.FAILED
        elif char == "{" or (char == "[" and not are_arguments):
            self._begin_object(char)
        elif char in '"-' or char.isalnum():
            self._token = [char]
            self._state = _State.IN_STRING if char == '"' else _State.IN_WORD
        else:
            self._state = _State.FAILED
        self._has_arguments |= are_arguments

    def _begin_object(self, char: str) -> None:
        self._object = ObjectReader()
        self._object.feed(char)
        self._state = _State.IN_OBJECT
        if self._key in _ARGUMENTS:
            self._take_arguments(char)

    def _step_word(self, char: str) -> None:
        if char in ",}" or char in _WHITESPACE:
            self._end_value()
            if self._state is _State.KEY:
                self._step_key(char)
        elif char in "+-." or char.isalnum():
            self._token.append(char)
        else:
            self._state = _State.FAILED

    def _end_value(self) -> None:
        self._state = _State.KEY
        if self._key == "name":
            self._name = self._decode()
            if self._name not in self._names:
                self._state = _State.FAILED
            self.begun = self._are_object and not self.failed
        elif self._key in _ARGUMENTS and self._token != list("null"):
            arguments = self._decode()
            if arguments is None or not _is_object(arguments):
                self._state = _State.FAILED
            else:
                self._take_arguments(arguments)

    def _take_arguments(self, text: str) -> None:
        """The arguments are an object, of which this is the first."""
        self._arguments.append(text)
        self._are_object = True
        self.begun = self._name is not None

    def _ends_string(self, char: str) -> bool:
        """Takes a character of a string: whether it is the closing quote."""
        self._token.append(char)
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
            return msgspec.json.decode("".join(self._token), type=str)
        except (msgspec.DecodeError, ValueError):
            return None


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
