"""Where a JSON object ends, in text that comes in pieces."""


class ObjectReader:
    """Passes an object on as it stands, up to its closing brace. The text begins with the opening one."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.done = False

    def feed(self, text: str) -> tuple[int, str]:
        """How many characters belong to the object, and these."""
        for index, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.done = True
                    return index + 1, text[: index + 1]
        return len(text), text
