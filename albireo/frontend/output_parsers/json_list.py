"""A list of calls, `[{"name": "f", "parameters": {...}}]`: what `tool_choice: required` makes any model write."""

from collections.abc import Set
from typing import Final

from albireo.frontend.message_parts import Part, TextPart
from albireo.frontend.output_parsers.call_ids import NewCallId, new_call_id
from albireo.frontend.output_parsers.call_reader import CallReader

_BEFORE: Final = "[, \t\r\n"
_BETWEEN: Final = _BEFORE + "}"
"""Behind a call, where a brace is one too many."""


class JsonListParser:
    """A `MessageParser`. What is no list of calls is text; what stands behind a call that broke off is dropped."""

    def __init__(
        self, names: Set[str], first_index: int = 0, in_front: str = "", new_id: NewCallId = new_call_id
    ) -> None:
        """`names`: of the tools that may be called. `in_front`: what stood in front of the list, for where it is
        none."""
        self._names = names
        self._new_id = new_id
        self._num_calls = first_index
        self._reader: CallReader | None = None
        self._skipped = in_front
        """What stood in front of the first call, to be shown where it is none."""
        self._after_call = False
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
        stripped = text.lstrip(_BETWEEN if self._after_call else _BEFORE)
        if not self._after_call:
            self._skipped += text[: len(text) - len(stripped)]
        if stripped.startswith("{"):
            self._reader = CallReader(self._num_calls, self._names, new_id=self._new_id)
        elif stripped.startswith("]"):
            self._ended = True
        elif stripped:
            self._is_text = True
        return stripped

    def _feed_call(self, text: str, parts: list[Part]) -> str:
        assert self._reader is not None
        reader = self._reader
        used, news = reader.feed(text)
        parts += news
        if reader.begun:
            self._skipped = ""
        if reader.done:
            self._num_calls += 1
            self._reader, self._after_call = None, True
        elif reader.failed:
            self._ended = reader.begun
            if not reader.begun:
                self._skipped += reader.raw
                self._reader, self._is_text = None, True
        return text[used:]
