"""`POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from typing import Final

import msgspec
from starlette.types import Receive, Scope, Send

from albireo.errors import RequestError
from albireo.frontend.anthropic.format import MessagesFormat
from albireo.frontend.anthropic.requests import CountTokensRequest, MessagesRequest
from albireo.frontend.anthropic.to_chat import chat_of_messages, chat_of_prompt
from albireo.frontend.body import read_json_body
from albireo.frontend.chat_runner import ChatRunner
from albireo.frontend.decode import decode_body
from albireo.frontend.json_response import send_json
from albireo.frontend.service import Service

_FIELDS: Final = {"stop": "stop_sequences", "max_completion_tokens": "max_tokens"}
"""Their names for ours, for errors that are found in the chat."""


class Messages:
    """ASGI endpoint: the assistant's next message."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._runner = ChatRunner(service)
        self._decoder = msgspec.json.Decoder(MessagesRequest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode_body(await read_json_body(scope, receive), self._decoder)
        chat = chat_of_messages(request, knows_thinking(self._service))
        name = self._service.model_name
        try:
            await self._runner.run(scope, receive, send, chat, lambda _, parsing: MessagesFormat(name, parsing))
        except RequestError as error:
            raise _in_their_words(error) from error


class CountTokens:
    """ASGI endpoint: how many tokens such a prompt has."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._runner = ChatRunner(service)
        self._decoder = msgspec.json.Decoder(CountTokensRequest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode_body(await read_json_body(scope, receive), self._decoder)
        chat = chat_of_prompt(request, knows_thinking(self._service))
        self._service.check_request(chat)
        ids, _ = await self._runner.encode(chat)
        await send_json(send, 200, msgspec.json.encode({"input_tokens": len(ids)}))


def knows_thinking(service: Service) -> bool:
    template = service.text.template
    return template is not None and "enable_thinking" in template.variables


def _in_their_words(error: RequestError) -> RequestError:
    if error.field in _FIELDS:
        error.message = error.message.replace(error.field, _FIELDS[error.field], 1)
        error.field = _FIELDS[error.field]
    return error
