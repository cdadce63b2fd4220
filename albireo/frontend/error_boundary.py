"""Every exception of a request ends here, as OpenAI's error body. ASGI middleware, the outermost but the log."""

import asyncio
import logging
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from albireo import limits
from albireo.errors import InternalError, MethodNotAllowedError, NotFoundError, RequestError, StoppingError
from albireo.frontend.json_response import Headers, send_error
from albireo.frontend.output import ClientGoneError
from albireo.frontend.request_ids import request_id

logger = logging.getLogger(__name__)


class ErrorBoundary:
    """Typed errors become their status; anything else is our bug: 500 with a number, and the log has the rest."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_and_note(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        headers: Headers = []
        scope["app"] = self  # starlette's router raises its 404 and 405 only inside an application
        try:
            await self._app(scope, receive, send_and_note)
            return
        except ClientGoneError:
            return
        except RequestError as caught:
            error = caught
        except HTTPException as caught:
            error, headers = _routing_error(caught, scope)
        except asyncio.CancelledError:
            if started:
                raise
            error = StoppingError()  # uvicorn's end: a request that was not handed to the engine in time
        except Exception:
            number = request_id(scope) or uuid.uuid4().hex
            logger.exception("request %s failed: %s %r", number, scope["method"], scope["path"])
            error = InternalError(f"internal error; the server's log has more under {number}")
        try:
            if started:
                raise error  # half a response: uvicorn closes the connection, so that the client sees it
            await send_error(send, error, scope["path"].removeprefix(scope.get("root_path", "")), headers)
            error.__traceback__ = None
        finally:
            # Its traceback leads to the frames that had the request, and these and this one back to the error: a body
            # of 8 MB, and what was read of it, would stay until the garbage collector comes by.
            del error


def _routing_error(error: HTTPException, scope: Scope) -> tuple[RequestError, Headers]:
    headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    if error.status_code == 404:
        return NotFoundError(f"there is no {scope['path'][: limits.MAX_ECHO_CHARS]} here"), headers
    if error.status_code == 405:
        return MethodNotAllowedError(f"{scope['method']} is not possible here"), headers
    return RequestError(error.detail), headers
