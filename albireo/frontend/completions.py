"""`POST /v1/completions`."""

from collections.abc import Sequence

import msgspec
from starlette.types import Receive, Scope, Send

from albireo import limits
from albireo.errors import RequestError
from albireo.frontend.body import read_json_body
from albireo.frontend.decode import decode_request
from albireo.frontend.formats import CompletionFormat
from albireo.frontend.requests import CompletionRequest
from albireo.frontend.respond import respond
from albireo.frontend.sampling import COMPLETION_MAX_TOKENS, check_prompt_length
from albireo.frontend.service import Service


class Completions:
    """ASGI endpoint: one choice per prompt."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._decoder = msgspec.json.Decoder(CompletionRequest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        request = decode_request(await read_json_body(scope, receive), self._decoder)
        service.check_request(request)
        prompts = await self._encode(split_prompts(request.prompt))
        bad_words = await service.bad_words(request)
        await respond(
            scope,
            receive,
            send,
            service.engine,
            lambda output: service.submit(request, prompts, COMPLETION_MAX_TOKENS, bad_words, output),
            CompletionFormat(request, service.model_name, prompts, service.text.detokenizer),
            streams=bool(request.stream),
        )

    async def _encode(self, prompts: Sequence[str | list[int]]) -> list[list[int]]:
        """Token ids of each prompt, within the model's bounds."""
        bounds = self._service.bounds
        tokenizer = self._service.text.tokenizer
        names = [f"prompt[{index}]" for index in range(len(prompts))] if len(prompts) > 1 else ["prompt"]

        def encode() -> list[list[int]]:
            return [
                tokenizer.encode_prompt(prompt, name) if isinstance(prompt, str) else prompt
                for prompt, name in zip(prompts, names, strict=True)
            ]

        num_chars = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
        encoded = await self._service.prepare(encode, num_chars)
        for name, ids in zip(names, encoded, strict=True):
            check_prompt_length(len(ids), bounds, name)
            if max(ids) >= bounds.vocab_size:
                raise RequestError(f"{name} has a token id beyond the vocabulary of {bounds.vocab_size}", field=name)
        return encoded


def split_prompts(prompt: str | list[str | int | list[int]] | None) -> Sequence[str | list[int]]:
    """The four shapes of `prompt` (text, texts, token ids, lists of token ids) as a list of prompts of one kind."""
    if prompt is None:
        raise RequestError("prompt is missing", field="prompt", code="missing_required_parameter")
    if isinstance(prompt, str):
        prompt = [prompt]
    if not prompt:
        raise RequestError("prompt must not be empty", field="prompt")
    kinds = set(map(type, prompt))
    if kinds == {int}:
        return [[id_ for id_ in prompt if isinstance(id_, int)]]
    if len(prompt) > limits.MAX_PROMPTS:
        raise RequestError(f"prompt must have at most {limits.MAX_PROMPTS} entries", field="prompt")
    for index, each in enumerate(prompt):
        if each in ("", []):
            name = "prompt" if len(prompt) == 1 else f"prompt[{index}]"
            raise RequestError(f"{name} must not be empty", field=name)
    if kinds == {str}:
        return [text for text in prompt if isinstance(text, str)]
    if kinds == {list}:
        return [ids for ids in prompt if isinstance(ids, list)]
    raise RequestError("prompt must be a string, strings, token ids or lists of token ids: not a mixture", "prompt")
