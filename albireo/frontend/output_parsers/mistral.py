"""Mistral: `[TOOL_CALLS]` and then a list, `[{"name": "f", "arguments": {...}}]`, or, since v11 of its tokenizer,
`f{...}` with a `[TOOL_CALLS]` for each call, and `[ARGS]` in between where the model writes that."""

from typing import Final

from albireo.frontend.message_parts import Part, TextPart, ToolCallArguments, ToolCallBegin
from albireo.frontend.output_parsers.call_reader import new_call_id
from albireo.frontend.output_parsers.held import num_held
from albireo.frontend.output_parsers.json_list import JsonListParser
from albireo.frontend.output_parsers.json_object import ObjectReader

BEGIN: Final = "[TOOL_CALLS]"
ARGS: Final = "[ARGS]"
MAX_NAME: Final = 200
"""Longest text in front of the arguments that is taken for a name."""


class MistralParser:
    """A `MessageParser`."""

    def __init__(self) -> None:
        self._pending = ""
        self._in_calls = False
        self._list: JsonListParser | None = None
        self._arguments: ObjectReader | None = None
        self._num_calls = 0
        self._after_call = False

    def feed(self, text: str) -> list[Part]:
        if self._list is not None:
            return self._list.feed(text)
        self._pending += text
        parts: list[Part] = []
        while self._pending and self._advance(parts):
            pass
        return parts

    def end(self) -> list[Part]:
        if self._list is not None:
            return self._list.end()
        rest, self._pending = self._pending, ""
        if self._in_calls and self._arguments is None:
            rest = BEGIN + rest
        return self._text(rest)

    def _text(self, text: str) -> list[Part]:
        """White space behind a call separates it from the next, and is no text."""
        if self._after_call:
            text = text.lstrip()
        if not text:
            return []
        self._after_call = False
        return [TextPart(text)]

    def _advance(self, parts: list[Part]) -> bool:
        if self._arguments is not None:
            used, arguments = self._arguments.feed(self._pending)
            self._pending = self._pending[used:]
            if arguments:
                parts.append(ToolCallArguments(self._num_calls, arguments))
            if self._arguments.done:
                self._num_calls += 1
                self._arguments, self._in_calls, self._after_call = None, False, True
            return bool(self._pending)
        return self._advance_call(parts) if self._in_calls else self._advance_text(parts)

    def _advance_text(self, parts: list[Part]) -> bool:
        at = self._pending.find(BEGIN)
        end = at if at >= 0 else len(self._pending) - num_held(self._pending, (BEGIN,))
        parts += self._text(self._pending[:end])
        self._pending = self._pending[end + (len(BEGIN) if at >= 0 else 0) :]
        self._in_calls = at >= 0
        return self._in_calls

    def _advance_call(self, parts: list[Part]) -> bool:
        """From behind the marker to where the arguments begin."""
        text = self._pending.lstrip()
        if text.startswith("["):
            inside = text[1:].lstrip()
            if inside.startswith(("{", "]")):
                self._list = JsonListParser(self._num_calls, in_front=BEGIN)
                self._pending = ""
                parts += self._list.feed(text)
            return bool(inside) and self._list is None and self._give_up(parts)
        at = text.find("{")
        name = text[: max(at, 0)].strip().removesuffix(ARGS).strip()
        if at < 0 and len(text) <= MAX_NAME:
            return False
        if not name or len(name) > MAX_NAME:
            return self._give_up(parts)
        parts.append(ToolCallBegin(self._num_calls, new_call_id(), name))
        self._pending, self._arguments = text[at:], ObjectReader()
        return True

    def _give_up(self, parts: list[Part]) -> bool:
        """No call follows the marker: it is text, and so may be what stands behind it. True."""
        parts += self._text(BEGIN)
        self._in_calls = False
        return True
