"""What an assistant's message is made of, as it comes: text, reasoning, tool calls; for every wire format.

A parser reads the model's output of one sequence, in pieces of any size, and says what each piece is. What it gives
does not depend on how the output was cut into pieces, but for how parts of one kind are cut; so a streamed message and
a whole one are the same message.
"""

from collections.abc import Iterable
from typing import Protocol

from msgspec import Struct


class TextPart(Struct, frozen=True):
    """More of the message's text."""

    text: str


class ReasoningPart(Struct, frozen=True):
    """More of what the model thinks before it answers."""

    text: str


class ToolCallBegin(Struct, frozen=True):
    """A tool call, which goes on until the next part that is not of it."""

    index: int
    """0, 1, ... within the message."""
    id: str
    name: str


class ToolCallArguments(Struct, frozen=True):
    """More of the arguments of call `index`: together they are one JSON object, as the model wrote it."""

    index: int
    text: str


Part = TextPart | ReasoningPart | ToolCallBegin | ToolCallArguments


class MessageParser(Protocol):
    """Of one sequence. Lives on the event loop; its cost per token is part of the server's."""

    def feed(self, text: str) -> list[Part]:
        """What this piece of output completes; what might still become something else is held back."""

    def end(self) -> list[Part]:
        """The output is complete: what was held back."""


class ToolCall(Struct):
    """A whole call."""

    id: str
    name: str
    arguments: str = ""


class Message(Struct):
    """A whole message."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []


def whole_message(parts: Iterable[Part]) -> Message:
    """All parts of a message put together."""
    message = Message()
    for part in parts:
        match part:
            case TextPart():
                message.text += part.text
            case ReasoningPart():
                message.reasoning += part.text
            case ToolCallBegin():
                message.tool_calls.append(ToolCall(part.id, part.name))
            case ToolCallArguments():
                message.tool_calls[part.index].arguments += part.text
    return message
