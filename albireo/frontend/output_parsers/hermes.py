"""Hermes, and Qwen 2.5 and 3: `<tool_call>{"name": "f", "arguments": {...}}</tool_call>`, any number of them."""

from typing import Final

from albireo.frontend.message_parts import Part, TextPart
from albireo.frontend.output_parsers.call_reader import CallReader
from albireo.frontend.output_parsers.held import num_held

BEGIN: Final = "<tool_call>"
END: Final = "</tool_call>"


class HermesParser:
    """A `MessageParser`. What stands between tags and is no call is text, tags and all."""

    def __init__(self) -> None:
        self._pending = ""
        self._reader: CallReader | None = None
        self._num_calls = 0
        self._after_call = False
        """White space behind a call separates it from the next, and is no text."""

    def feed(self, text: str) -> list[Part]:
        self._pending += text
        parts: list[Part] = []
        while self._pending and self._advance(parts):
            pass
        return parts

    def end(self) -> list[Part]:
        parts = [] if self._reader is None else self._give_up()
        rest, self._pending = self._pending, ""
        return parts + self._text(rest)

    def _advance(self, parts: list[Part]) -> bool:
        """One piece of what is pending; False where more is needed."""
        if self._reader is None:
            return self._advance_text(parts)
        if not self._reader.done:
            used, news = self._reader.feed(self._pending)
            self._pending = self._pending[used:]
            parts += news
            if self._reader.failed:
                parts += self._give_up()
            return bool(self._pending)
        stripped = self._pending.lstrip()
        if stripped.startswith(END):
            self._pending = stripped[len(END) :]
        elif END.startswith(stripped):
            return False  # what is there may be the begin of the end
        self._num_calls += 1
        self._reader, self._after_call = None, True
        return True

    def _advance_text(self, parts: list[Part]) -> bool:
        at = self._pending.find(BEGIN)
        if at >= 0:
            parts += self._text(self._pending[:at])
            self._pending = self._pending[at + len(BEGIN) :]
            self._reader = CallReader(self._num_calls)
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

    def _give_up(self) -> list[Part]:
        """The call is none, or broke off: what was not told of it yet is text."""
        assert self._reader is not None
        reader, self._reader = self._reader, None
        if reader.begun:
            self._num_calls += 1
            return []
        return self._text(BEGIN + reader.raw)
