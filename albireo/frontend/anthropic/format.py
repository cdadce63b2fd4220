"""Anthropic's responses: a message of content blocks, whole or as events."""

import uuid
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from albireo.errors import RequestError, anthropic_error_body
from albireo.frontend.anthropic.to_chat import json_object
from albireo.frontend.generation import Generation
from albireo.frontend.message_parsing import MessageParsing
from albireo.frontend.message_parts import (
    Part,
    ReasoningPart,
    TextPart,
    ToolCallArguments,
    ToolCallBegin,
    whole_message,
)
from albireo.frontend.parsed_messages import ParsedMessages

_encode = msgspec.json.Encoder().encode

_STOP_REASONS: Final = {"length": "max_tokens", "tool_calls": "tool_use"}
TEXT_HEAD: Final = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":'
)


class MessagesFormat:
    """A `Format`."""

    def __init__(self, model: str, parsing: MessageParsing | None) -> None:
        self._id = "msg_" + uuid.uuid4().hex
        self._model = model
        self._messages = ParsedMessages(parsing)
        self._block: tuple[str, int] | None = None
        """Kind of the open block, and which tool call it is."""
        self._num_blocks = 0
        self._has_begun = False

    def chunk(self, generation: Generation) -> bytes:
        parts, _ = self._messages.take(generation)
        pieces = [] if self._has_begun else [self._begin(generation)]
        for part in parts:
            pieces += self._write(part)
        return b"".join(pieces)

    def end(self, generations: Sequence[Generation]) -> bytes:
        (generation,) = generations
        events = self._close()
        delta = self._stop(generation)
        events.append(_event("message_delta", {"delta": delta, "usage": {"output_tokens": generation.num_tokens}}))
        events.append(_event("message_stop", {}))
        return b"".join(events)

    def error(self, error: RequestError) -> bytes:
        return b"event: error\ndata: " + _encode(anthropic_error_body(error)) + b"\n\n"

    def body(self, generations: Sequence[Generation]) -> bytes:
        (generation,) = generations
        parts, _ = self._messages.take(generation)
        message = whole_message(parts)
        content: list[dict[str, Any]] = []
        if message.reasoning:
            content.append({"type": "thinking", "thinking": message.reasoning, "signature": ""})
        if message.text.strip() or not message.tool_calls:
            content.append({"type": "text", "text": message.text})
        for call in message.tool_calls:
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": json_object(call.arguments)})
        return _encode(self._head() | {"content": content} | self._stop(generation) | {"usage": _usage(generation)})

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model}

    def _begin(self, generation: Generation) -> bytes:
        self._has_begun = True
        rest: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(generation)}
        return _event("message_start", {"message": self._head() | rest})

    def _stop(self, generation: Generation) -> dict[str, Any]:
        reason, stopped_by = self._messages.finish_reason(generation), generation.stop_reason
        if self._messages.has_calls(generation) and reason == "stop":
            reason = "tool_calls"  # a named call's too
        if isinstance(stopped_by, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": stopped_by}
        return {"stop_reason": _STOP_REASONS.get(reason or "", "end_turn"), "stop_sequence": None}

    def _write(self, part: Part) -> list[bytes]:
        match part:
            case TextPart():
                head = self._open("text", 0, {"type": "text", "text": ""})
                return [*head, TEXT_HEAD % (self._num_blocks - 1), _encode(part.text), b"}}\n\n"]
            case ReasoningPart():
                head = self._open("thinking", 0, {"type": "thinking", "thinking": "", "signature": ""})
                return [*head, self._delta({"type": "thinking_delta", "thinking": part.text})]
            case ToolCallBegin():
                block = {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
                return self._open("tool_use", part.index, block)
            case ToolCallArguments():
                return [self._delta({"type": "input_json_delta", "partial_json": part.text})]

    def _open(self, kind: str, number: int, block: dict[str, Any]) -> list[bytes]:
        """Closes the open block and begins this one, unless it is the same."""
        if self._block == (kind, number):
            return []
        events = self._close()
        self._block = (kind, number)
        self._num_blocks += 1
        events.append(_event("content_block_start", {"index": self._num_blocks - 1, "content_block": block}))
        return events

    def _close(self) -> list[bytes]:
        if self._block is None:
            return []
        self._block = None
        return [_event("content_block_stop", {"index": self._num_blocks - 1})]

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", {"index": self._num_blocks - 1, "delta": delta})


def _event(type_: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (type_.encode(), _encode({"type": type_} | fields))


def _usage(generation: Generation) -> dict[str, int]:
    """Cached tokens are not among the input tokens, as Anthropic counts."""
    return {
        "input_tokens": generation.num_prompt_tokens - generation.num_cached_tokens,
        "output_tokens": generation.num_tokens,
        "cache_read_input_tokens": generation.num_cached_tokens,
        "cache_creation_input_tokens": 0,
    }
