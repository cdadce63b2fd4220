"""A list of calls, `[{"name": "f", "parameters": {...}}]`: what `tool_choice: required` makes any model write."""

from typing import Final

from albireo.frontend.message_parts import Part, TextPart
from albireo.frontend.output_parsers.call_reader import CallReader

_BETWEEN: Final = "[, \t\r\n"


class JsonListParser:
    """A `MessageParser`. What is no list of calls is text."""

    def __init__(self, first_index: int = 0, in_front: str = "") -> None:
        """`in_front`: what stood in front of the list, for where it is none."""
        self._num_calls = first_index
        self._reader: CallReader | None = None
        self._skipped = in_front
        """What stood in front of the call under way, to be shown where it is none."""
        self._ended = False
        self._is_text = False

    def feed(self, text: str) -> list[Part]:
        parts: list[Part] = []
        while text and not self._ended and not self._is_text:
            text = self._feed_call(text, parts) if self._reader else self._feed_between(text)
        if self._is_text and self._skipped + text:
            parts.append(TextPart(self._skipped + text))
            self._skipped = ""
        return parts

    def end(self) -> list[Part]:
        rest = self._skipped
        if self._reader is not None:
            rest = "" if self._reader.begun else rest + self._reader.raw
        return [TextPart(rest)] if rest.strip() and not self._ended else []

    def _feed_between(self, text: str) -> str:
        stripped = text.lstrip(_BETWEEN)
        self._skipped += text[: len(text) - len(stripped)]
        if stripped.startswith("{"):
            self._reader = CallReader(self._num_calls)
        elif stripped.startswith("]"):
            self._ended = True
        elif stripped:
            self._is_text = True
        return stripped

    def _feed_call(self, text: str, parts: list[Part]) -> str:
        assert self._reader is not None
        used, news = self._reader.feed(text)
        parts += news
        if self._reader.done:
            self._num_calls += 1
            self._reader, self._skipped = None, ""
        elif self._reader.failed:
            self._skipped = "" if self._reader.begun else self._skipped + self._reader.raw
            self._reader, self._is_text = None, True
        return text[used:]
