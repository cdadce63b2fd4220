"""`POST /tokenize` and `POST /detokenize`, as vLLM has them."""

from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct
from starlette.types import Receive, Scope, Send

from albireo import limits
from albireo.errors import RequestError
from albireo.frontend.body import read_json_body
from albireo.frontend.chat_runner import ChatRunner
from albireo.frontend.decode import decode_body
from albireo.frontend.json_response import send_json
from albireo.frontend.requests import ChatMessage, ChatRequest, Scalar, TokenId, refuse_unsupported, unsupported
from albireo.frontend.service import Service
from albireo.frontend.tool_fields import Tool

_NOT_GIVEN: Raw = msgspec.field(default_factory=Raw)


class TokenizeRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /tokenize`: a prompt, or a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=limits.MAX_MESSAGES)] | None = None
    add_special_tokens: bool | None = None
    """Of a prompt; a chat's template writes them all."""
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Scalar], Meta(max_length=limits.MAX_TEMPLATE_KWARGS)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=limits.MAX_TOOLS)] | None = None
    chat_template: Annotated[Raw, unsupported()] = _NOT_GIVEN


class TokenizeResponse(Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /detokenize`."""

    tokens: Annotated[list[TokenId], Meta(max_length=limits.MAX_DETOKENIZED)]
    model: str | None = None


class DetokenizeResponse(Struct):
    prompt: str


class Tokenize:
    """ASGI endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._runner = ChatRunner(service)
        self._decoder = msgspec.json.Decoder(TokenizeRequest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        request = decode_body(await read_json_body(scope, receive), self._decoder)
        refuse_unsupported(request)
        service.check_model(request.model)
        tokens = await self._encode(request)
        token_strs = None
        if request.return_token_strs:
            vocabulary = service.text.tokenizer.backend
            token_strs = [vocabulary.id_to_token(token) or "" for token in tokens]
        answer = TokenizeResponse(len(tokens), service.config.scheduler.max_model_len, tokens, token_strs)
        await send_json(send, 200, msgspec.json.encode(answer))

    async def _encode(self, request: TokenizeRequest) -> list[int]:
        if (request.prompt is None) == (request.messages is None):
            raise RequestError("prompt is to be given, or messages, and not both", field="prompt")
        if request.messages is not None:
            return await self._encode_chat(request, request.messages)
        for field in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"):
            if getattr(request, field) is not None:
                raise RequestError(f"{field} needs messages", field=field)
        prompt, tokenizer = request.prompt or "", self._service.text.tokenizer
        adds = request.add_special_tokens is not False
        return await self._service.prepare(lambda: tokenizer.encode_prompt(prompt, "prompt", adds), len(prompt))

    async def _encode_chat(self, request: TokenizeRequest, messages: list[ChatMessage]) -> list[int]:
        if request.add_special_tokens:
            field = "add_special_tokens"
            raise RequestError(f"{field} is for prompts: a chat's template writes them", field=field)
        chat = ChatRequest(
            messages=messages,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            chat_template_kwargs=request.chat_template_kwargs,
            tools=request.tools,
        )
        return (await self._runner.encode(chat))[0]


class Detokenize:
    """ASGI endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._decoder = msgspec.json.Decoder(DetokenizeRequest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        request = decode_body(await read_json_body(scope, receive), self._decoder)
        service.check_model(request.model)
        for index, token in enumerate(request.tokens):
            if token >= service.bounds.vocab_size:
                field = f"tokens[{index}]"
                raise RequestError(f"{field} must be below the vocabulary size {service.bounds.vocab_size}", field)
        detokenizer = service.text.detokenizer(False)
        tokens = request.tokens
        text = await service.prepare(
            lambda: "".join(map(detokenizer.feed, tokens)) + detokenizer.flush(), 4 * len(tokens)
        )
        await send_json(send, 200, msgspec.json.encode(DetokenizeResponse(text)))
