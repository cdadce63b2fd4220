"""`POST /v1/chat/completions`."""

from collections.abc import Sequence

import msgspec
from starlette.types import Receive, Scope, Send

from albireo.frontend.body import read_json_body
from albireo.frontend.chat_runner import ChatRunner
from albireo.frontend.decode import decode_request
from albireo.frontend.formats import ChatFormat
from albireo.frontend.message_parsing import MessageParsing
from albireo.frontend.parsed_chat_format import ParsedChatFormat
from albireo.frontend.requests import ChatRequest
from albireo.frontend.service import Service


class ChatCompletions:
    """ASGI endpoint: the assistant's next message."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._runner = ChatRunner(service)
        self._decoder = msgspec.json.Decoder(ChatRequest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode_request(await read_json_body(scope, receive), self._decoder)
        await self._runner.run(
            scope,
            receive,
            send,
            request,
            lambda prompts, parsing: self._format(request, prompts, parsing),
        )

    def _format(
        self, request: ChatRequest, prompts: Sequence[Sequence[int]], parsing: MessageParsing | None
    ) -> ChatFormat:
        model, texts = self._service.model_name, self._service.text.detokenizer
        if parsing is None:
            return ChatFormat(request, model, prompts, texts)
        return ParsedChatFormat(request, model, prompts, texts, parsing)
