"""`<think>...</think>` in front of the answer, as Qwen 3, DeepSeek R1 and others write it."""

from typing import Final

from albireo.frontend.message_parts import MessageParser, Part, ReasoningPart, TextPart
from albireo.frontend.output_parsers.held import num_held

BEGIN: Final = "<think>"
END: Final = "</think>"


class PlainText:
    """A `MessageParser` for which everything is text."""

    def feed(self, text: str) -> list[Part]:
        return [TextPart(text)] if text else []

    def end(self) -> list[Part]:
        return []


class ReasoningParser:
    """A `MessageParser` in front of another, which gets what comes after the reasoning. Line ends around the
    reasoning belong to neither."""

    def __init__(self, then: MessageParser, begins_inside: bool) -> None:
        """`begins_inside`: the prompt has opened the reasoning, or the model leaves that out."""
        self._then = then
        self._pending = ""
        self._is_open = begins_inside
        self._undecided = True
        """Nothing but white space has come yet, or a part of `<think>`."""
        self._strips_answer = False
        self._passes_on = False

    def feed(self, text: str) -> list[Part]:
        if self._passes_on:
            return self._pass(text)
        self._pending += text
        if self._undecided and not self._decide():
            return []
        return self._reason()

    def end(self) -> list[Part]:
        rest, self._pending = self._pending, ""
        if self._passes_on:
            return self._then.end()
        if self._is_open:
            return [ReasoningPart(rest)] if rest.strip() or not self._undecided else []
        return self._pass(rest) + self._then.end()

    def _decide(self) -> bool:
        """Whether it is clear that the output begins with reasoning, or that it does not."""
        text = self._pending.lstrip()
        if text.startswith(BEGIN):
            self._pending, self._is_open = text[len(BEGIN) :], True
        elif not text or BEGIN.startswith(text):
            return False
        self._undecided = False
        return True

    def _reason(self) -> list[Part]:
        if not self._is_open:
            text, self._pending, self._passes_on = self._pending, "", True
            return self._pass(text)
        at = self._pending.find(END)
        if at < 0:
            end = len(self._pending) - num_held(self._pending, (END,))
            text, self._pending = self._pending[:end], self._pending[end:]
            return [ReasoningPart(text)] if text else []
        text, answer = self._pending[:at], self._pending[at + len(END) :]
        self._pending, self._passes_on, self._strips_answer = "", True, True
        return [*([ReasoningPart(text)] if text else []), *self._pass(answer)]

    def _pass(self, text: str) -> list[Part]:
        if self._strips_answer:
            text = text.lstrip("\r\n")
            self._strips_answer = not text
        return self._then.feed(text) if text else []
