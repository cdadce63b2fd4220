"""The bytes of the two endpoints' responses: whole bodies, and the chunks of a stream.

A chunk is built from pieces that are the same for the whole stream; only the text is encoded per token.
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from albireo.errors import RequestError, error_body
from albireo.frontend.detokenizer import DetokenizerFactory
from albireo.frontend.echo import Echo
from albireo.frontend.generation import Generation
from albireo.frontend.logprobs import CompletionLogprobs, TokenNames, chat_logprobs, prompt_logprobs
from albireo.frontend.requests import ChatRequest, CompletionRequest, GenerationRequest

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class Format(Protocol):
    """How one request's output is written."""

    def chunk(self, generation: Generation) -> bytes:
        """What the generation has for the client as server-sent events, and its end if it has ended; may be empty."""

    def end(self, generations: Sequence[Generation]) -> bytes:
        """A stream's last events, when every generation has ended."""

    def error(self, error: RequestError) -> bytes:
        """A stream's last events where an error ends it: the status line is long gone."""

    def body(self, generations: Sequence[Generation]) -> bytes:
        """The whole response, when every generation has ended."""


class _OpenAIFormat(ABC):
    """What completions and chats share."""

    object: str
    chunk_object: str
    id_prefix: str

    def __init__(
        self, request: GenerationRequest, model: str, prompts: Sequence[Sequence[int]], texts: DetokenizerFactory
    ) -> None:
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
        self._names = TokenNames(texts)
        self._num_prompt_logprobs = request.prompt_logprobs
        self._begun: set[int] = set()
        self._chunk_head = b"data: " + _encode(self._head | {"object": self.chunk_object})[:-1]

    def end(self, generations: Sequence[Generation]) -> bytes:
        """The usage, if `stream_options.include_usage`, and [DONE]."""
        if not self._with_usage:
            return DONE
        return self._chunk_head + b',"choices":[],"usage":' + _encode(self._usage(generations)) + b"}\n\n" + DONE

    def error(self, error: RequestError) -> bytes:
        return b"data: " + _encode(error_body(error)) + b"\n\n" + DONE

    def body(self, generations: Sequence[Generation]) -> bytes:
        choices = [self._choice(generation) for generation in generations]
        return _encode(self._head | {"choices": choices, "usage": self._usage(generations)})

    def _usage(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """So far."""
        return usage(generations)

    @abstractmethod
    def _choice(self, generation: Generation) -> dict[str, Any]:
        """The generation's entry in `choices`, when it has ended."""

    def _prompt_logprobs(self, generation: Generation) -> list[dict[str, Any] | None]:
        """vLLM's extension; only where `prompt_logprobs` was given, which streams refuse."""
        assert self._num_prompt_logprobs is not None
        assert generation.scores is not None
        assert generation.scores.prompt is not None
        return prompt_logprobs(generation.scores.prompt, self._num_prompt_logprobs, self._names)

    def _chunk_tail(self, generation: Generation) -> bytes:
        """OpenAI has a null usage in every chunk but the last, when a usage is asked for."""
        if self._with_usage_so_far:
            return b',"usage":' + _encode(self._usage([generation])) + b"}\n\n"
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

    def __init__(
        self, request: CompletionRequest, model: str, prompts: Sequence[Sequence[int]], texts: DetokenizerFactory
    ) -> None:
        super().__init__(request, model, prompts, texts)
        self._texts = texts
        self._skips_special = request.skip_special_tokens is not False
        self._echo = Echo(request.prompt, prompts, texts) if request.echo else None
        self._num_logprobs = request.logprobs
        self._logprobs: dict[int, CompletionLogprobs] = {}

    def chunk(self, generation: Generation) -> bytes:
        text, token_ids, logprobs = self._take(generation)
        pieces = [self._chunk_head, b',"choices":[{"index":%d,"text":' % generation.index, _encode(text)]
        if self._prompts is not None:
            pieces += [b',"token_ids":', _encode(token_ids)]
            if self._begins(generation):
                pieces += [b',"prompt_token_ids":', _encode(self._prompts[generation.prompt_index])]
        pieces += [_ending(generation, logprobs), b"}]", self._chunk_tail(generation)]
        return b"".join(pieces)

    def _choice(self, generation: Generation) -> dict[str, Any]:
        text, token_ids, logprobs = self._take(generation)
        choice = {
            "index": generation.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": generation.finish_reason,
            "stop_reason": generation.stop_reason,
        }
        if self._num_prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._prompt_logprobs(generation)
        if self._prompts is not None:
            choice |= {"token_ids": token_ids, "prompt_token_ids": self._prompts[generation.prompt_index]}
        return choice

    def _take(self, generation: Generation) -> tuple[str, list[int], dict[str, Any] | None]:
        """Text, output token ids and `logprobs` since the last call; the first time behind the prompt's, with echo."""
        text, token_ids = generation.take()
        logprobs = None if self._num_logprobs is None else self._take_logprobs(generation)
        if self._echo is not None:
            text = self._echo.take(generation.index, generation.prompt_index) + text
        return text, token_ids, logprobs

    def _take_logprobs(self, generation: Generation) -> dict[str, Any] | None:
        assert self._num_logprobs is not None
        writer = self._logprobs.get(generation.index)
        if writer is None:
            writer = CompletionLogprobs(self._num_logprobs, self._names)
            self._logprobs[generation.index] = writer
            begin = 0
            if self._echo is not None:
                assert generation.scores is not None
                assert generation.scores.prompt is not None
                begin = self._echo.add_logprobs(generation.prompt_index, generation.scores.prompt, writer)
            writer.text_begins(self._texts(self._skips_special), begin)
        writer.add(generation.take_scores())
        return writer.take()


class ChatFormat(_OpenAIFormat):
    """`chat.completion`: a message from the assistant."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def __init__(
        self, request: ChatRequest, model: str, prompts: Sequence[Sequence[int]], texts: DetokenizerFactory
    ) -> None:
        super().__init__(request, model, prompts, texts)
        self._num_logprobs = (request.top_logprobs or 0) if request.logprobs else None

    def chunk(self, generation: Generation) -> bytes:
        text, token_ids = generation.take()
        head, role = [self._chunk_head], b""
        if self._begins(generation):
            role = b'"role":"assistant",'
            if self._prompts is not None:
                head += [b',"prompt_token_ids":', _encode(self._prompts[0])]
        pieces = [*head, b',"choices":[{"index":%d,"delta":{' % generation.index, role, b'"content":', _encode(text)]
        pieces.append(b"}")
        if self._prompts is not None:
            pieces += [b',"token_ids":', _encode(token_ids)]
        logprobs = None if self._num_logprobs is None else self._take_logprobs(generation)
        pieces += [_ending(generation, logprobs), b"}]", self._chunk_tail(generation)]
        return b"".join(pieces)

    def body(self, generations: Sequence[Generation]) -> bytes:
        if self._prompts is not None:
            self._head["prompt_token_ids"] = self._prompts[0]
        if self._num_prompt_logprobs is not None:
            self._head["prompt_logprobs"] = self._prompt_logprobs(generations[0])
        return super().body(generations)

    def _choice(self, generation: Generation) -> dict[str, Any]:
        text, token_ids = generation.take()
        choice = {
            "index": generation.index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None if self._num_logprobs is None else self._take_logprobs(generation),
            "finish_reason": generation.finish_reason,
            "stop_reason": generation.stop_reason,
        }
        return choice | {"token_ids": token_ids} if self._prompts is not None else choice

    def _take_logprobs(self, generation: Generation) -> dict[str, Any] | None:
        """`logprobs` of the tokens since the last call; None where there are none."""
        assert self._num_logprobs is not None
        records = generation.take_scores()
        return chat_logprobs(records, self._num_logprobs, self._names) if records.size else None


def _ending(generation: Generation, logprobs: dict[str, Any] | None) -> bytes:
    head = b',"logprobs":null' if logprobs is None else b',"logprobs":' + _encode(logprobs)
    if generation.finish_reason is None:
        return head + b',"finish_reason":null'
    reason = _encode(generation.finish_reason)
    return head + b',"finish_reason":' + reason + b',"stop_reason":' + _encode(generation.stop_reason)


def usage(generations: Sequence[Generation]) -> dict[str, Any]:
    """OpenAI's `usage` of completions and chats. A prompt counts once, however many samples it has."""
    firsts = {generation.prompt_index: generation for generation in reversed(generations)}.values()
    prompt = sum(generation.num_prompt_tokens for generation in firsts)
    completion = sum(generation.num_tokens for generation in generations)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(generation.num_cached_tokens for generation in firsts)},
    }
