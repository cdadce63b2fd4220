"""The Responses API's responses: an object with a list of output items, whole or as events."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from albireo.errors import RequestError
from albireo.frontend.detokenizer import DetokenizerFactory
from albireo.frontend.generation import Generation
from albireo.frontend.logprobs import TokenNames, chat_logprobs
from albireo.frontend.message_parsing import MessageParsing
from albireo.frontend.message_parts import Part, ReasoningPart, TextPart, ToolCallArguments, ToolCallBegin
from albireo.frontend.output_parsers.reasoning import PlainText
from albireo.frontend.parsed_messages import ParsedMessages
from albireo.frontend.responses.items import Item, Kind, begun, content_part, done, new_item
from albireo.frontend.responses.requests import ResponsesRequest
from albireo.frontend.responses.scored_parser import ScoredParser
from albireo.frontend.responses.to_chat import LOGPROBS

_encode = msgspec.json.Encoder().encode


class ResponsesFormat:
    """A `Format`."""

    def __init__(
        self, request: ResponsesRequest, model: str, parsing: MessageParsing | None, texts: DetokenizerFactory
    ) -> None:
        self._request = request
        self._head = {
            "id": "resp_" + uuid.uuid4().hex, "object": "response", "created_at": int(time.time()), "model": model,
        }  # fmt: skip
        self._names = TokenNames(texts)
        self._num_top = request.top_logprobs or 0
        self._scored: ScoredParser | None = None
        if LOGPROBS in (request.include or ()):
            parsing = parsing or MessageParsing(PlainText)
            scored = self._scored = ScoredParser(parsing.make(), texts(True, parsing.shown), parsing.shown)
            parsing = msgspec.structs.replace(parsing, make=lambda: scored)
        self._messages = ParsedMessages(parsing, texts)
        self._items: list[Item] = []
        self._open: Item | None = None
        self._num_events = 0
        self._text_head = b""

    def chunk(self, generation: Generation) -> bytes:
        pieces = [] if self._num_events else self._begin()
        scored = self._scored
        if scored is None:
            for part in self._messages.take(generation)[0]:
                pieces += self._write(part, [])
            return b"".join(pieces)
        records = generation.take_scores()
        scored.add(records["token"].tolist(), chat_logprobs(records, self._num_top, self._names)["content"])
        parts, _ = self._messages.take(generation)
        for part, entries in zip(parts, scored.take(), strict=True):
            pieces += self._write(part, entries)
        return b"".join(pieces)

    def end(self, generations: Sequence[Generation]) -> bytes:
        (generation,) = generations
        response = self._response(generation)
        events = self._close(response["status"])
        events.append(self._event(f"response.{response['status']}", {"response": response}))
        return b"".join(events)

    def error(self, error: RequestError) -> bytes:
        failed = {"code": error.code or "server_error", "message": error.message}
        response = self._object("failed") | {"error": failed}
        return self._event("response.failed", {"response": response})

    def body(self, generations: Sequence[Generation]) -> bytes:
        (generation,) = generations
        self.chunk(generation)
        return _encode(self._response(generation))

    # -- the response object --------------------------------------------------------------------------------------

    def _response(self, generation: Generation) -> dict[str, Any]:
        """When the generation has ended."""
        is_whole = generation.finish_reason == "stop"
        status = "completed" if is_whole else "incomplete"
        last = self._items[-1] if self._items else None
        output = [done(item, "completed" if is_whole or item is not last else "incomplete") for item in self._items]
        response = self._object(status) | {"output": output, "usage": self._usage(generation)}
        if not is_whole:
            reason = "max_output_tokens" if generation.finish_reason == "length" else "content_filter"
            response["incomplete_details"] = {"reason": reason}
        return response

    def _object(self, status: str) -> dict[str, Any]:
        """What every state of the response has: the request's own parameters, above all."""
        request = self._request
        format_ = None if request.text is None else request.text.format
        effort = None if request.reasoning is None else request.reasoning.effort
        return self._head | {
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "output": [],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": effort, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": {"format": {"type": "text"} if format_ is None else _given(format_)},
            "tool_choice": request.tool_choice or "auto",
            "tools": [{"parameters": None, "strict": None} | _given(tool) for tool in request.tools or ()],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": request.truncation or "disabled",
            "usage": None,
            "user": request.user,
        }

    def _usage(self, generation: Generation) -> dict[str, Any]:
        return {
            "input_tokens": generation.num_prompt_tokens,
            "input_tokens_details": {"cached_tokens": generation.num_cached_tokens},
            "output_tokens": generation.num_tokens,
            "output_tokens_details": {"reasoning_tokens": self._messages.num_reasoning_tokens(generation)},
            "total_tokens": generation.num_prompt_tokens + generation.num_tokens,
        }

    # -- events ---------------------------------------------------------------------------------------------------

    def _event(self, type_: str, fields: dict[str, Any]) -> bytes:
        body = _encode({"type": type_, "sequence_number": self._num_events} | fields)
        self._num_events += 1
        return b"event: %b\ndata: %b\n\n" % (type_.encode(), body)

    def _begin(self) -> list[bytes]:
        response = self._object("in_progress")
        return [self._event(f"response.{state}", {"response": response}) for state in ("created", "in_progress")]

    def _write(self, part: Part, logprobs: list[dict[str, Any]]) -> list[bytes]:
        match part:
            case TextPart():
                events = self._enter("message")
                return [*events, self._text_delta(part.text, logprobs)]
            case ReasoningPart():
                events = self._enter("reasoning")
                item = self._current(part.text)
                place = {"item_id": item.id, "output_index": item.index, "content_index": 0, "delta": part.text}
                return [*events, self._event("response.reasoning_text.delta", place)]
            case ToolCallBegin():
                return self._enter("function_call", part)
            case ToolCallArguments():
                item = self._current(part.text)
                place = {"item_id": item.id, "output_index": item.index, "delta": part.text}
                return [self._event("response.function_call_arguments.delta", place)]

    def _text_delta(self, text: str, logprobs: list[dict[str, Any]]) -> bytes:
        """The event of which there is one for every token, from pieces that stay the same for the whole item."""
        item = self._current(text)
        item.logprobs += logprobs
        number = self._num_events
        self._num_events += 1
        encoded = _encode(logprobs) if logprobs else b"[]"
        return b"".join(
            [self._text_head, _encode(text), b',"logprobs":', encoded, b',"sequence_number":%d}\n\n' % number]
        )

    def _current(self, text: str) -> Item:
        assert self._open is not None
        self._open.pieces.append(text)
        return self._open

    def _enter(self, kind: Kind, call: ToolCallBegin | None = None) -> list[bytes]:
        """Goes on with the open item if it is of that kind and no new call; else closes it and begins one."""
        if self._open is not None and self._open.kind == kind and call is None:
            return []
        events = self._close("completed")
        call_id, name = ("", "") if call is None else (call.id, call.name)
        item = self._open = new_item(kind, len(self._items), call_id, name)
        self._items.append(item)
        events.append(self._event("response.output_item.added", {"output_index": item.index, "item": begun(item)}))
        if kind != "function_call":
            place = {"item_id": item.id, "output_index": item.index, "content_index": 0}
            events.append(self._event("response.content_part.added", place | {"part": content_part(item, "")}))
        head = {"item_id": item.id, "output_index": item.index, "content_index": 0}
        type_ = "response.output_text.delta"
        fixed = _encode({"type": type_} | head)[:-1]
        self._text_head = b'event: %b\ndata: %b,"delta":' % (type_.encode(), fixed)
        return events

    def _close(self, status: str) -> list[bytes]:
        """The open item's last events."""
        item, self._open = self._open, None
        if item is None:
            return []
        place = {"item_id": item.id, "output_index": item.index}
        if item.kind == "function_call":
            fields = place | {"name": item.name, "arguments": item.text}
            events = [self._event("response.function_call_arguments.done", fields)]
        else:
            place["content_index"] = 0
            type_, fields = "response.output_text.done", {"text": item.text, "logprobs": item.logprobs}
            if item.kind == "reasoning":
                type_, fields = "response.reasoning_text.done", {"text": item.text}
            part = {"part": content_part(item, item.text)}
            events = [
                self._event(type_, place | fields),
                self._event("response.content_part.done", place | part),
            ]
        last = {"output_index": item.index, "item": done(item, status)}
        return [*events, self._event("response.output_item.done", last)]


def _given(struct: msgspec.Struct) -> dict[str, Any]:
    """A request's own object, without what it left open."""
    fields: dict[str, Any] = msgspec.json.decode(_encode({
        name: value
        for name in struct.__struct_fields__
        if (value := getattr(struct, name)) is not None and value != msgspec.Raw()
    }))  # fmt: skip
    return fields
