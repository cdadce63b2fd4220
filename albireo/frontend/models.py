"""`GET /v1/models` and `/v1/models/{id}`."""

import time
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from albireo import limits
from albireo.errors import NotFoundError
from albireo.frontend.json_response import send_json
from albireo.frontend.service import Service


class Models:
    """ASGI endpoint: one entry per served name; with an id in the path, that one alone."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._created = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        model_id = scope["path_params"].get("model_id")
        names = self._service.config.served_model_names
        if model_id is None:
            body: dict[str, Any] = {"object": "list", "data": [self._card(name) for name in names]}
        elif model_id in names:
            body = self._card(model_id)
        else:
            raise NotFoundError(
                f"the model {model_id[: limits.MAX_ECHO_CHARS]!r} does not exist", field="model", code="model_not_found"
            )
        await send_json(send, 200, msgspec.json.encode(body))

    def _card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "albireo",
            "root": self._service.model_name,
            "parent": None,
            "max_model_len": self._service.bounds.context_tokens,
        }
