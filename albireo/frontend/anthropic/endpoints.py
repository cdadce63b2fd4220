"""`POST /v1/messages` and `POST /v1/messages/count_tokens`."""

import re
from typing import Final

import msgspec
from starlette.types import Receive, Scope, Send

from albireo.errors import RequestError
from albireo.frontend.anthropic.format import MessagesFormat
from albireo.frontend.anthropic.requests import CountTokensRequest, MessagesRequest
from albireo.frontend.anthropic.to_chat import call_inputs, chat_of_messages, chat_of_prompt
from albireo.frontend.body import read_json_body
from albireo.frontend.chat_runner import ChatRunner
from albireo.frontend.decode import decode_body
from albireo.frontend.field_names import Names, rename_field
from albireo.frontend.json_response import send_json
from albireo.frontend.service import Service

FIELD_NAMES: Final[Names] = {
    re.compile(r"stop$"): "stop_sequences",
    re.compile(r"messages\b.*"): "messages",
    re.compile(r"(tools\[\d+\])\.function\.parameters"): r"\1.input_schema",
    re.compile(r"(tools\[\d+\])\.function"): r"\1",
    re.compile(r"tool_choice\.function"): "tool_choice",
    re.compile(r"parallel_tool_calls$"): "tool_choice.disable_parallel_tool_use",
    re.compile(r"chat_template_kwargs\b.*"): "thinking.type",
}
"""A chat's fields. A chat may have more messages, so only the list is named."""


class Messages:
    """ASGI endpoint: the assistant's next message."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._runner = ChatRunner(service)
        self._decoder = msgspec.json.Decoder(MessagesRequest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode_body(await read_json_body(scope, receive), self._decoder)
        chat = chat_of_messages(request, _knows_thinking(request, self._service))
        name = self._service.model_name
        try:
            await self._runner.run(scope, receive, send, chat, lambda _, parsing: MessagesFormat(name, parsing))
        except RequestError as error:
            rename_field(error, FIELD_NAMES, chat.messages, call_inputs(request))
            raise


class CountTokens:
    """ASGI endpoint: how many tokens such a prompt has."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._runner = ChatRunner(service)
        self._decoder = msgspec.json.Decoder(CountTokensRequest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode_body(await read_json_body(scope, receive), self._decoder)
        chat = chat_of_prompt(request, _knows_thinking(request, self._service))
        try:
            self._service.check_request(chat)
            ids, _ = await self._runner.encode(chat)
        except RequestError as error:
            rename_field(error, FIELD_NAMES, chat.messages, call_inputs(request))
            raise
        await send_json(send, 200, msgspec.json.encode({"input_tokens": len(ids)}))


def _knows_thinking(request: CountTokensRequest, service: Service) -> bool:
    """Whether the chat template reads `enable_thinking`. Raises RequestError where the model is asked to think and
    nothing here says that it can."""
    template = service.text.template
    if template is None or "enable_thinking" in template.variables:
        return template is not None
    wants = request.thinking is not None and request.thinking.type == "enabled"
    if wants and service.config.reasoning_parser is None:
        field = "thinking.type"
        raise RequestError(f"{field}: this model does not think; send disabled, or leave thinking out", field=field)
    return False
