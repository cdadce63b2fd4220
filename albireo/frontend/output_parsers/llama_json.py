"""Llama 3.1 and later: the whole message is `{"name": "f", "parameters": {...}}`, several separated by semicolons."""

from typing import Final

from albireo.frontend.message_parts import Part, TextPart
from albireo.frontend.output_parsers.call_reader import CallReader

PYTHON_TAG: Final = "<|python_tag|>"
_SEPARATORS: Final = ";, \t\r\n"


class LlamaJsonParser:
    """A `MessageParser`. A message that does not begin with a call is text as a whole."""

    def __init__(self) -> None:
        self._pending = ""
        self._reader: CallReader | None = None
        self._num_calls = 0
        self._is_text = False

    def feed(self, text: str) -> list[Part]:
        if self._is_text:
            return [TextPart(text)] if text else []
        self._pending += text
        parts: list[Part] = []
        while self._pending and not self._is_text and self._advance(parts):
            pass
        if self._is_text and self._pending:
            parts.append(TextPart(self._pending))
            self._pending = ""
        return parts

    def end(self) -> list[Part]:
        rest, self._pending = self._pending, ""
        if self._reader is not None and not self._reader.begun:
            rest = self._reader.raw + rest
        rest = rest if not self._num_calls else rest.strip(_SEPARATORS)
        return [TextPart(rest)] if rest else []

    def _advance(self, parts: list[Part]) -> bool:
        if self._reader is None:
            return self._begin()
        used, news = self._reader.feed(self._pending)
        self._pending = self._pending[used:]
        parts += news
        if self._reader.done:
            self._num_calls += 1
            self._reader = None
        elif self._reader.failed:
            if not self._reader.begun:
                self._pending = self._reader.raw + self._pending
            self._reader, self._is_text = None, True
        return bool(self._pending)

    def _begin(self) -> bool:
        """Whether a call begins, now or after what is still to come; else all of it is text."""
        text = self._pending.lstrip(_SEPARATORS if self._num_calls else " \t\r\n")
        if not self._num_calls and text.startswith(PYTHON_TAG):
            text = text[len(PYTHON_TAG) :].lstrip()
        if text.startswith("{"):
            self._pending = text
            self._reader = CallReader(self._num_calls)
            return True
        if text and not (PYTHON_TAG.startswith(text) and not self._num_calls):
            self._is_text = True
        return False
