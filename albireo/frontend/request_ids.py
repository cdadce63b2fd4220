"""A name for each request, in its response's `X-Request-Id` and in the log. ASGI middleware."""

import re
import uuid
from collections.abc import MutableMapping
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

_ALLOWED: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_KEY: Final = "albireo.request_id"


def request_id(scope: Scope) -> str | None:
    """The request's name, where requests have one: under this application."""
    name: str | None = scope.get(_KEY)
    return name


class RequestIdMiddleware:
    """The client's own `X-Request-Id`, if it is printable ASCII of up to 128 characters, or a new one:
    logs have it, and responses where it is wanted."""

    def __init__(self, app: ASGIApp, sends_header: bool) -> None:
        self._app = app
        self._sends_header = sends_header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        name = given if _ALLOWED.fullmatch(given) else uuid.uuid4().hex.encode()
        scope[_KEY] = name.decode()
        if not self._sends_header:
            await self._app(scope, receive, send)
            return

        async def send_with_name(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", name)]
            await send(message)

        await self._app(scope, receive, send_with_name)
