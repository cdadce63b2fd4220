"""`GET /version`."""

import msgspec
from starlette.types import Receive, Scope, Send

from albireo.frontend.json_response import send_json


class Version:
    """ASGI endpoint: this server's version."""

    def __init__(self, version: str) -> None:
        self._body = msgspec.json.encode({"version": version})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, self._body)
