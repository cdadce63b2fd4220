"""Hermes, and Qwen 2.5 and 3: `<tool_call>{"name": "f", "arguments": {...}}</tool_call>`, any number of them."""

from collections.abc import Set
from typing import Final

from albireo.frontend.message_parts import Part, TextPart
from albireo.frontend.output_parsers.call_reader import CallReader
from albireo.frontend.output_parsers.held import find_first, num_held

BEGIN: Final = "<tool_call>"
END: Final = "</tool_call>"


class HermesParser:
    """A `MessageParser`. What stands between tags and is no call is text, tags and all; what stands between a call,
    whole or broken off, and its closing tag is dropped."""

    def __init__(self, names: Set[str]) -> None:
        """`names`: of the tools that may be called."""
        self._names = names
        self._pending = ""
        self._reader: CallReader | None = None
        self._num_calls = 0
        self._before_end = False
        """Behind a call, and before its closing tag."""
        self._after_call = False
        """White space behind a call separates it from the next, and is no text."""

    def feed(self, text: str) -> list[Part]:
        self._pending += text
        parts: list[Part] = []
        while self._pending and self._advance(parts):
            pass
        return parts

    def end(self) -> list[Part]:
        rest, self._pending = self._pending, ""
        if self._reader is not None:
            return self._end_call()
        return [] if self._before_end else self._text(rest)

    def _advance(self, parts: list[Part]) -> bool:
        """One piece of what is pending; False where more is needed."""
        if self._reader is not None:
            used, news = self._reader.feed(self._pending)
            self._pending = self._pending[used:]
            parts += news
            if self._reader.done or self._reader.failed:
                parts += self._end_call()
            return self._reader is None
        return self._advance_to_end() if self._before_end else self._advance_text(parts)

    def _advance_to_end(self) -> bool:
        """Drops what comes before the closing tag, or before the next call where there is none."""
        at, marker = find_first(self._pending, (BEGIN, END))
        if at < 0:
            self._pending = self._pending[len(self._pending) - num_held(self._pending, (BEGIN, END)) :]
            return False
        self._pending = self._pending[at + (len(END) if marker == END else 0) :]
        self._before_end, self._after_call = False, True
        return True

    def _advance_text(self, parts: list[Part]) -> bool:
        at = self._pending.find(BEGIN)
        if at >= 0:
            parts += self._text(self._pending[:at])
            self._pending = self._pending[at + len(BEGIN) :]
            self._reader = CallReader(self._num_calls, self._names)
            return True
        held = num_held(self._pending, (BEGIN,))
        end = len(self._pending) - held
        parts += self._text(self._pending[:end])
        self._pending = self._pending[end:]
        return False

    def _text(self, text: str) -> list[Part]:
        if self._after_call:
            text = text.lstrip()
        if not text:
            return []
        self._after_call = False
        return [TextPart(text)]

    def _end_call(self) -> list[Part]:
        """The object is whole, fails or breaks off: if no call has begun it is text."""
        assert self._reader is not None
        reader, self._reader = self._reader, None
        if not reader.begun:
            return self._text(BEGIN + reader.raw)
        self._num_calls += 1
        self._before_end = True
        return []
