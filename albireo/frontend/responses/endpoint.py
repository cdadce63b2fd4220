"""`POST /v1/responses`."""

import re
from typing import Final

import msgspec
from starlette.types import Receive, Scope, Send

from albireo.errors import RequestError
from albireo.frontend.body import read_json_body
from albireo.frontend.chat_runner import ChatRunner
from albireo.frontend.decode import decode_body
from albireo.frontend.field_names import Names, rename_field
from albireo.frontend.responses.format import ResponsesFormat
from albireo.frontend.responses.requests import ResponsesRequest
from albireo.frontend.responses.to_chat import call_arguments, chat_of_response
from albireo.frontend.service import Service

FIELD_NAMES: Final[Names] = {
    re.compile(r"max_tokens$"): "max_output_tokens",
    re.compile(r"messages\b.*"): "input",
    re.compile(r"reasoning_effort$"): "reasoning.effort",
    re.compile(r"response_format(\.json_schema)?"): "text.format",
    re.compile(r"(tools\[\d+\])\.function"): r"\1",
    re.compile(r"tool_choice\.function"): "tool_choice",
    re.compile(r"logprobs$"): "include",
}
"""A chat's fields. Items and messages are not one to one, so of messages only the list is named."""


class Responses:
    """ASGI endpoint: the assistant's next message, and what it calls."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._runner = ChatRunner(service)
        self._decoder = msgspec.json.Decoder(ResponsesRequest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        request = decode_body(await read_json_body(scope, receive), self._decoder)
        chat = chat_of_response(request)
        try:
            await self._runner.run(
                scope,
                receive,
                send,
                chat,
                lambda _, parsing: ResponsesFormat(request, service.model_name, parsing, service.text.detokenizer),
            )
        except RequestError as error:
            rename_field(error, FIELD_NAMES, chat.messages, call_arguments(request))
            raise
