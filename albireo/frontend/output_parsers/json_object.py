"""Where a JSON object ends, in text that comes in pieces."""

from typing import Final

_CLOSES: Final = {"{": "}", "[": "]"}


class ObjectReader:
    """Finds the end of an object, or of an array. The text begins with its opening brace."""

    def __init__(self) -> None:
        self._closing: list[str] = []
        """What closes each brace and bracket that is open."""
        self._in_string = False
        self._escaped = False
        self.done = False
        self.failed = False
        """It broke off: a bracket does not match, or a `<`, with which tags begin, stands outside of the strings."""

    def feed(self, text: str) -> int:
        """How many characters belong to the object: all, unless it ends or fails."""
        for index, char in enumerate(text):
            if self._in_string:
                self._step_string(char)
            elif char == '"':
                self._in_string = True
            elif char in _CLOSES:
                self._closing.append(_CLOSES[char])
            elif char == "<" or (char in "}]" and self._closing[-1] != char):
                self.failed = True
                return index
            elif char in "}]":
                self._closing.pop()
                if not self._closing:
                    self.done = True
                    return index + 1
        return len(text)

    def _step_string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
