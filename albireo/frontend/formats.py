"""The bytes of the two endpoints' responses: whole bodies, and the chunks of a stream.

A chunk is built from pieces that are the same for the whole stream; only the text is encoded per token.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from albireo.errors import RequestError, error_body
from albireo.frontend.generation import Generation
from albireo.frontend.requests import GenerationRequest

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class Format(Protocol):
    """How one request's output is written."""

    def chunk(self, generation: Generation) -> bytes:
        """One server-sent event with the text that the generation has for the client, and its end if it has ended."""

    def usage_chunk(self, generations: Sequence[Generation]) -> bytes:
        """The last event before [DONE], empty unless `stream_options.include_usage`."""

    def body(self, generations: Sequence[Generation]) -> bytes:
        """The whole response, when every generation has ended."""


class _OpenAIFormat:
    """What completions and chats share."""

    object: str
    chunk_object: str
    id_prefix: str

    def __init__(self, request: GenerationRequest, model: str, prompts: Sequence[Sequence[int]]) -> None:
        self._head: dict[str, Any] = {
            "id": self.id_prefix + uuid.uuid4().hex,
            "object": self.object,
            "created": int(time.time()),
            "model": model,
        }
        options = request.stream_options
        self._with_usage = bool(options and options.include_usage)
        self._with_usage_so_far = bool(options and self._with_usage and options.continuous_usage_stats)
        self._prompts = prompts if request.return_token_ids else None
        self._begun: set[int] = set()
        self._chunk_head = b"data: " + _encode(self._head | {"object": self.chunk_object})[:-1]

    def usage_chunk(self, generations: Sequence[Generation]) -> bytes:
        if not self._with_usage:
            return b""
        return self._chunk_head + b',"choices":[],"usage":' + _encode(_usage(generations)) + b"}\n\n"

    def body(self, generations: Sequence[Generation]) -> bytes:
        choices = [self._choice(generation) for generation in generations]
        return _encode(self._head | {"choices": choices, "usage": _usage(generations)})

    def _choice(self, generation: Generation) -> dict[str, Any]:
        raise NotImplementedError

    def _chunk_tail(self, generation: Generation) -> bytes:
        """OpenAI has a null usage in every chunk but the last, when a usage is asked for."""
        if self._with_usage_so_far:
            return b',"usage":' + _encode(_usage([generation])) + b"}\n\n"
        return b',"usage":null}\n\n' if self._with_usage else b"}\n\n"

    def _begins(self, generation: Generation) -> bool:
        """Whether this is the generation's first chunk."""
        if generation.index in self._begun:
            return False
        self._begun.add(generation.index)
        return True


class CompletionFormat(_OpenAIFormat):
    """`text_completion`: one choice per prompt."""

    object = chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def chunk(self, generation: Generation) -> bytes:
        text, token_ids = generation.take()
        pieces = [self._chunk_head, b',"choices":[{"index":%d,"text":' % generation.index, _encode(text)]
        if self._prompts is not None:
            pieces += [b',"token_ids":', _encode(token_ids)]
            if self._begins(generation):
                pieces += [b',"prompt_token_ids":', _encode(self._prompts[generation.index])]
        pieces += [_ending(generation), b"}]", self._chunk_tail(generation)]
        return b"".join(pieces)

    def _choice(self, generation: Generation) -> dict[str, Any]:
        text, token_ids = generation.take()
        choice = {
            "index": generation.index,
            "text": text,
            "logprobs": None,
            "finish_reason": generation.finish_reason,
            "stop_reason": generation.stop_reason,
        }
        if self._prompts is not None:
            choice |= {"token_ids": token_ids, "prompt_token_ids": self._prompts[generation.index]}
        return choice


class ChatFormat(_OpenAIFormat):
    """`chat.completion`: a message from the assistant."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def chunk(self, generation: Generation) -> bytes:
        text, token_ids = generation.take()
        head, role = [self._chunk_head], b""
        if self._begins(generation):
            role = b'"role":"assistant",'
            if self._prompts is not None:
                head += [b',"prompt_token_ids":', _encode(self._prompts[generation.index])]
        pieces = [*head, b',"choices":[{"index":%d,"delta":{' % generation.index, role, b'"content":', _encode(text)]
        pieces.append(b"}")
        if self._prompts is not None:
            pieces += [b',"token_ids":', _encode(token_ids)]
        pieces += [_ending(generation), b"}]", self._chunk_tail(generation)]
        return b"".join(pieces)

    def body(self, generations: Sequence[Generation]) -> bytes:
        if self._prompts is not None:
            self._head["prompt_token_ids"] = self._prompts[0]
        return super().body(generations)

    def _choice(self, generation: Generation) -> dict[str, Any]:
        text, token_ids = generation.take()
        choice = {
            "index": generation.index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": generation.finish_reason,
            "stop_reason": generation.stop_reason,
        }
        return choice | {"token_ids": token_ids} if self._prompts is not None else choice


def error_event(error: RequestError) -> bytes:
    """An error in the middle of a stream, where the status line is long gone."""
    return b"data: " + _encode(error_body(error)) + b"\n\n"


def _ending(generation: Generation) -> bytes:
    if generation.finish_reason is None:
        return b',"logprobs":null,"finish_reason":null'
    reason = _encode(generation.finish_reason)
    return b',"logprobs":null,"finish_reason":' + reason + b',"stop_reason":' + _encode(generation.stop_reason)


def _usage(generations: Sequence[Generation]) -> dict[str, Any]:
    prompt = sum(generation.num_prompt_tokens for generation in generations)
    completion = sum(generation.num_tokens for generation in generations)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(generation.num_cached_tokens for generation in generations)},
    }
