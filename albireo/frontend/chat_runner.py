"""From a chat request, on whichever endpoint it came, to its response: template, tokens, generation."""

import asyncio
from collections.abc import Callable, Sequence

from starlette.types import Receive, Scope, Send

from albireo import limits
from albireo.errors import RequestError
from albireo.frontend.chat_prompt import ChatPrompt
from albireo.frontend.deadline import Deadline
from albireo.frontend.formats import Format
from albireo.frontend.message_parsing import MessageParsing, message_parsing
from albireo.frontend.requests import ChatRequest
from albireo.frontend.respond import respond
from albireo.frontend.sampling import check_prompt_length
from albireo.frontend.service import Service

MakeFormat = Callable[[Sequence[Sequence[int]], MessageParsing | None], Format]
"""Given the prompts' token ids, of which a chat has one, and how to read the output; None: it is text."""


class ChatRunner:
    """Every wire format that is a conversation becomes a `ChatRequest`, and goes this way."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def run(
        self, scope: Scope, receive: Receive, send: Send, request: ChatRequest, make_format: MakeFormat
    ) -> None:
        """Answers `request`, which has been decoded and checked, streamed if it says so. Raises RequestError while
        nothing has been sent."""
        service = self._service
        service.check_request(request)
        prompt, prompt_end = await self.encode(request)
        parsing = message_parsing(request, service.config, prompt_end)
        check_prompt_length(len(prompt), service.bounds, "messages")
        bad_words = await service.bad_words(request)
        await respond(
            scope,
            receive,
            send,
            service.engine,
            lambda output: service.submit(request, [prompt], None, bad_words, output, parsing),
            make_format([prompt], parsing),
            streams=bool(request.stream),
        )

    async def encode(self, request: ChatRequest) -> tuple[list[int], str]:
        """The prompt's token ids, and the end of its text. On a thread: a template's time depends on what the client
        sends."""
        template = self._service.text.template
        if template is None:
            raise RequestError("this model has no chat template: use /v1/completions", field="messages")
        loop = asyncio.get_running_loop()
        deadline = Deadline(loop, limits.TEMPLATE_TIMEOUT_S)
        chat = ChatPrompt(request, template, self._service.text.tokenizer)
        try:
            ids = await self._service.prepare_on_thread(lambda: chat.encode(deadline))
            return ids, chat.end
        finally:
            deadline.cancel()
