"""Mistral: `[TOOL_CALLS]` and then a list, `[{"name": "f", "arguments": {...}}]`, or, since v11 of its tokenizer,
`f{...}` with a `[TOOL_CALLS]` for each call, and `[ARGS]` in between, or `[CALL_ID]`, an id and `[ARGS]`, where the
model writes that. A model's id is not taken: it need not be another one in every turn."""

from collections.abc import Set
from typing import Final

from albireo.frontend.message_parts import Part, TextPart, ToolCallArguments, ToolCallBegin
from albireo.frontend.output_parsers.call_ids import new_mistral_call_id
from albireo.frontend.output_parsers.held import num_held
from albireo.frontend.output_parsers.json_list import JsonListParser
from albireo.frontend.output_parsers.json_object import ObjectReader

BEGIN: Final = "[TOOL_CALLS]"
ARGS: Final = "[ARGS]"
CALL_ID: Final = "[CALL_ID]"
MAX_NAME: Final = 200
"""Longest text in front of the arguments that is taken for a name, and an id."""
_BEHIND: Final = " \t\r\n}"


class MistralParser:
    """A `MessageParser`. A marker that no call follows is text; what stands behind a call that broke off is dropped, up
    to the next marker."""

    def __init__(self, names: Set[str]) -> None:
        """`names`: of the tools that may be called."""
        self._names = names
        self._pending = ""
        self._in_calls = False
        self._list: JsonListParser | None = None
        self._arguments: ObjectReader | None = None
        self._num_calls = 0
        self._after_call = False
        self._broke_off = False

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
        return [] if self._broke_off else self._text(rest)

    def _text(self, text: str) -> list[Part]:
        """White space behind a call separates it from the next, and a brace is one too many: no text."""
        if self._after_call:
            text = text.lstrip(_BEHIND)
        if not text:
            return []
        self._after_call = False
        return [TextPart(text)]

    def _advance(self, parts: list[Part]) -> bool:
        if self._arguments is not None:
            return self._advance_arguments(self._arguments, parts)
        return self._advance_call(parts) if self._in_calls else self._advance_text(parts)

    def _advance_arguments(self, reader: ObjectReader, parts: list[Part]) -> bool:
        used = reader.feed(self._pending)
        arguments, self._pending = self._pending[:used], self._pending[used:]
        if arguments:
            parts.append(ToolCallArguments(self._num_calls, arguments))
        if reader.done or reader.failed:
            self._num_calls += 1
            self._arguments, self._in_calls, self._after_call = None, False, True
            self._broke_off = reader.failed
        return bool(self._pending)

    def _advance_text(self, parts: list[Part]) -> bool:
        at = self._pending.find(BEGIN)
        end = at if at >= 0 else len(self._pending) - num_held(self._pending, (BEGIN,))
        if not self._broke_off:
            parts += self._text(self._pending[:end])
        self._pending = self._pending[end + (len(BEGIN) if at >= 0 else 0) :]
        self._in_calls = at >= 0
        self._broke_off &= at < 0
        return self._in_calls

    def _advance_call(self, parts: list[Part]) -> bool:
        """From behind the marker to where the arguments begin."""
        text = self._pending.lstrip()
        if text.startswith("["):
            inside = text[1:].lstrip()
            if inside.startswith(("{", "]")):
                space = self._pending[: len(self._pending) - len(text)]
                self._list = JsonListParser(self._names, self._num_calls, BEGIN + space, new_mistral_call_id)
                self._pending = ""
                parts += self._list.feed(text)
            return bool(inside) and self._list is None and self._give_up(parts)
        at = text.find("{")
        if at < 0 and len(text) <= MAX_NAME:
            return False
        name = text[: max(at, 0)].strip().removesuffix(ARGS).partition(CALL_ID)[0].strip()
        if at > MAX_NAME or name not in self._names:
            return self._give_up(parts)
        parts.append(ToolCallBegin(self._num_calls, new_mistral_call_id(), name))
        self._pending, self._arguments = text[at:], ObjectReader()
        return True

    def _give_up(self, parts: list[Part]) -> bool:
        """No call follows the marker: it is text, and so may be what stands behind it. True."""
        parts += self._text(BEGIN)
        self._in_calls = False
        return True
