"""Chat responses whose text is read by a parser: tool calls and reasoning, in OpenAI's shapes."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from albireo.frontend.detokenizer import DetokenizerFactory
from albireo.frontend.formats import ChatFormat
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
from albireo.frontend.requests import ChatRequest

_encode = msgspec.json.Encoder().encode


class ParsedChatFormat(ChatFormat):
    """`chat.completion` with `tool_calls` and `reasoning_content`."""

    def __init__(
        self,
        request: ChatRequest,
        model: str,
        prompts: Sequence[Sequence[int]],
        texts: DetokenizerFactory,
        parsing: MessageParsing,
    ) -> None:
        super().__init__(request, model, prompts, texts)
        self._reads_reasoning = parsing.reads_reasoning
        tells_usage = self._with_usage or not request.stream
        skips = request.skip_special_tokens is not False
        self._messages = ParsedMessages(parsing, texts if tells_usage else None, skips)
        self._kept_ids: dict[int, list[int]] = {}
        """Token ids of text that is held back."""

    def chunk(self, generation: Generation) -> bytes:
        """Empty while what came may still become something else."""
        parts, token_ids = self._messages.take(generation)
        if not parts and not generation.ended:
            if self._prompts is not None:
                self._kept_ids.setdefault(generation.index, []).extend(token_ids)
            return b""
        choice: dict[str, Any] = {"index": generation.index, "delta": _delta(parts)}
        head = {}
        if self._begins(generation):
            choice["delta"] = {"role": "assistant"} | choice["delta"]
            if self._prompts is not None:
                head["prompt_token_ids"] = self._prompts[0]
        if self._prompts is not None:
            choice["token_ids"] = self._kept_ids.pop(generation.index, []) + token_ids
        choice["logprobs"] = None if self._num_logprobs is None else self._take_logprobs(generation)
        choice["finish_reason"] = self._messages.finish_reason(generation)
        if generation.finish_reason is not None:
            choice["stop_reason"] = generation.stop_reason
        body = _encode(head | {"choices": [choice]})[1:-1]
        return b"".join([self._chunk_head, b",", body, self._chunk_tail(generation)])

    def _usage(self, generations: Sequence[Generation]) -> dict[str, Any]:
        whole = super()._usage(generations)
        if self._reads_reasoning:
            count = sum(map(self._messages.num_reasoning_tokens, generations))
            whole["completion_tokens_details"] = {"reasoning_tokens": count}
        return whole

    def _choice(self, generation: Generation) -> dict[str, Any]:
        parts, token_ids = self._messages.take(generation)
        choice = {
            "index": generation.index,
            "message": openai_message(parts),
            "logprobs": None if self._num_logprobs is None else self._take_logprobs(generation),
            "finish_reason": self._messages.finish_reason(generation),
            "stop_reason": generation.stop_reason,
        }
        return choice | {"token_ids": token_ids} if self._prompts is not None else choice


def openai_message(parts: Iterable[Part]) -> dict[str, Any]:
    """A chat's `message`."""
    whole = whole_message(parts)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": whole.text if whole.text.strip() or not whole.tool_calls else None,
        "refusal": None,
    }
    if whole.reasoning:
        message |= {"reasoning_content": whole.reasoning, "reasoning": whole.reasoning}
    if whole.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in whole.tool_calls
        ]
    return message


def _delta(parts: Iterable[Part]) -> dict[str, Any]:
    """One chunk's `delta`: several parts of a kind are one."""
    delta: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        match part:
            case TextPart():
                delta["content"] = delta.get("content", "") + part.text
            case ReasoningPart():
                delta["reasoning_content"] = delta["reasoning"] = delta.get("reasoning", "") + part.text
            case ToolCallBegin():
                function = {"name": part.name, "arguments": ""}
                calls[part.index] = {"index": part.index, "id": part.id, "type": "function", "function": function}
            case ToolCallArguments():
                call = calls.setdefault(part.index, {"index": part.index, "function": {"arguments": ""}})
                call["function"]["arguments"] += part.text
    return delta | {"tool_calls": list(calls.values())} if calls else delta
