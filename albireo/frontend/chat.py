"""`POST /v1/chat/completions`."""

import asyncio

import msgspec
from starlette.types import Receive, Scope, Send

from albireo import limits
from albireo.errors import RequestError
from albireo.frontend.body import read_json_body
from albireo.frontend.chat_prompt import ChatPrompt
from albireo.frontend.deadline import Deadline
from albireo.frontend.decode import decode_request
from albireo.frontend.formats import ChatFormat
from albireo.frontend.requests import ChatRequest
from albireo.frontend.respond import respond
from albireo.frontend.sampling import check_prompt_length
from albireo.frontend.service import Service


class ChatCompletions:
    """ASGI endpoint: one choice, the assistant's next message."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._decoder = msgspec.json.Decoder(ChatRequest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        request = decode_request(await read_json_body(scope, receive), self._decoder)
        service.check_request(request)
        prompt = await self._encode(request)
        check_prompt_length(len(prompt), service.bounds, "messages")
        bad_words = await service.bad_words(request)
        await respond(
            scope,
            receive,
            send,
            service.engine,
            lambda output: service.submit(request, [prompt], None, bad_words, output),
            ChatFormat(request, service.model_name, [prompt], service.text.detokenizer),
            streams=bool(request.stream),
        )

    async def _encode(self, request: ChatRequest) -> list[int]:
        """The prompt's token ids. On a thread: a template's time depends on what the client sends."""
        template = self._service.text.template
        if template is None:
            raise RequestError("this model has no chat template: use /v1/completions", field="messages")
        loop = asyncio.get_running_loop()
        deadline = Deadline(loop, limits.TEMPLATE_TIMEOUT_S)
        chat = ChatPrompt(request, template, self._service.text.tokenizer)
        try:
            return await loop.run_in_executor(self._service.threads, chat.encode, deadline)
        finally:
            deadline.cancel()
