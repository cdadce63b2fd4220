"""Llama 3.1 and later: the whole message is `{"name": "f", "parameters": {...}}`, several separated by semicolons."""

from collections.abc import Set
from typing import Final

from albireo.frontend.message_parts import Part, TextPart
from albireo.frontend.output_parsers.call_reader import CallReader

PYTHON_TAG: Final = "<|python_tag|>"
_SEPARATORS: Final = ";, \t\r\n}"
"""Behind a call; a brace there is one too many."""


class LlamaJsonParser:
    """A `MessageParser`. A message that does not begin with a call is text as a whole; what stands behind a call that
    broke off is dropped."""

    def __init__(self, names: Set[str]) -> None:
        """`names`: of the tools that may be called. An object with another one, or without arguments, is an answer in
        JSON."""
        self._names = names
        self._pending = ""
        self._skipped = ""
        """What stood in front of the first object, to be shown where it is no call."""
        self._reader: CallReader | None = None
        self._num_calls = 0
        self._is_text = False
        self._broke_off = False

    def feed(self, text: str) -> list[Part]:
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
        if self._reader is not None:
            rest = "" if self._reader.begun else self._skipped + self._reader.raw
        rest = rest if not self._num_calls else rest.lstrip(_SEPARATORS)
        return [TextPart(rest)] if rest and not self._broke_off else []

    def _advance(self, parts: list[Part]) -> bool:
        if self._broke_off:
            self._pending = ""
            return False
        if self._reader is None:
            return self._begin()
        used, news = self._reader.feed(self._pending)
        self._pending = self._pending[used:]
        parts += news
        if self._reader.done:
            self._num_calls += 1
            self._reader, self._skipped = None, ""
        elif self._reader.failed:
            self._broke_off, self._is_text = self._reader.begun, not self._reader.begun
            if self._is_text:
                self._pending = self._skipped + self._reader.raw + self._pending
            self._reader = None
        return bool(self._pending)

    def _begin(self) -> bool:
        """Whether an object begins, now or after what is still to come; else all of it is text."""
        text = self._pending.lstrip(_SEPARATORS if self._num_calls else None)
        if not self._num_calls and text.startswith(PYTHON_TAG):
            text = text[len(PYTHON_TAG) :].lstrip()
        if text.startswith("{"):
            if not self._num_calls:
                self._skipped = self._pending[: len(self._pending) - len(text)]
            self._pending = text
            self._reader = CallReader(self._num_calls, self._names, needs_arguments=True)
            return True
        if text and not (PYTHON_TAG.startswith(text) and not self._num_calls):
            self._is_text = True
            if self._num_calls:
                self._pending = text
        return False
