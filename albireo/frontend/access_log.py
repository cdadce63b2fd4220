"""One log line per request, when the server is told to. ASGI middleware."""

import logging
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from albireo.frontend.request_ids import request_id
from albireo.logs import fields

logger = logging.getLogger("albireo.access")


class AccessLogMiddleware:
    """Logs method, path, status and duration when a response is complete."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0
        started = time.perf_counter()

        async def send_and_note(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            host = scope["client"][0] if scope.get("client") else "-"
            elapsed_ms = (time.perf_counter() - started) * 1e3
            # %r: a path may hold line ends and escapes, a log line must not
            name = request_id(scope)
            ending = "" if name is None else f" {name}"
            logger.info(
                "%s %s %r %s %.1f ms%s", host, scope["method"], scope["path"], status or "-", elapsed_ms, ending,
                extra=fields(
                    event="request", client=host, method=scope["method"], path=scope["path"], status=status,
                    duration_ms=round(elapsed_ms, 1), request_id=name,
                ),
            )  # fmt: skip
