"""`POST /v1/responses`."""

from typing import Final

import msgspec
from starlette.types import Receive, Scope, Send

from albireo.errors import RequestError
from albireo.frontend.body import read_json_body
from albireo.frontend.chat_runner import ChatRunner
from albireo.frontend.decode import decode_body
from albireo.frontend.logprobs import TokenNames
from albireo.frontend.responses.format import ResponsesFormat
from albireo.frontend.responses.requests import ResponsesRequest
from albireo.frontend.responses.to_chat import chat_of_response
from albireo.frontend.service import Service

_FIELDS: Final = {
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
}
"""Their names for ours, for errors that are found in the chat."""


class Responses:
    """ASGI endpoint: the assistant's next message, and what it calls."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._runner = ChatRunner(service)
        self._decoder = msgspec.json.Decoder(ResponsesRequest)
        self._names = TokenNames(service.text.detokenizer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        request = decode_body(await read_json_body(scope, receive), self._decoder)
        try:
            await self._runner.run(
                scope,
                receive,
                send,
                chat_of_response(request),
                lambda _, parsing: ResponsesFormat(
                    request, service.model_name, parsing, self._names, self._count_tokens
                ),
            )
        except RequestError as error:
            if error.field in _FIELDS:
                error.message = error.message.replace(error.field, _FIELDS[error.field], 1)
                error.field = _FIELDS[error.field]
            raise

    def _count_tokens(self, text: str) -> int:
        return len(self._service.text.tokenizer.encode_inner(text))
