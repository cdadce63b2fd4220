"""`GET /openapi.json`: written from the types that validate requests, so that it cannot say anything else."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct
from starlette.types import Receive, Scope, Send

from albireo.errors import ErrorBody
from albireo.frontend.api_routes import API_ROUTES, Answer, ApiRoute
from albireo.frontend.json_response import send_json
from albireo.frontend.requests import unsupported_fields
from albireo.frontend.service import Service

_REF: Final = "#/components/schemas/{name}"
_OBJECT: Final = {"type": "object"}
_REASONS: Final = {
    400: "A field is wrong; `param` names it",
    401: "No valid API key",
    404: "No such model",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    429: "Too many wait already",
    500: "An error of the server",
    503: "The server is starting, stopping, or does not get on",
}


class OpenApi:
    """ASGI endpoint."""

    def __init__(self, service: Service) -> None:
        self._config = service.config
        self._api_keys = service.api_keys
        self._bodies: dict[bool, bytes] = {}
        """By whether a key is needed."""
        self._body()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, self._body())

    def _body(self) -> bytes:
        config, needs_key = self._config, not self._api_keys.is_open
        if needs_key not in self._bodies:
            document = openapi_document(config.version, config.served_model_names, needs_key)
            self._bodies[needs_key] = msgspec.json.encode(document)
        return self._bodies[needs_key]


def openapi_document(version: str, models: Sequence[str], needs_key: bool) -> dict[str, Any]:
    """OpenAPI 3.1. Fields that are known only to be refused are left out."""
    types = {type_ for route in API_ROUTES for type_ in _types(route)}
    ordered = sorted(types, key=lambda type_: type_.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_REF)
    for type_ in ordered:
        _describe_fields(schemas[type_.__name__].get("properties", {}), type_, models)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Albireo", "version": version, "description": "An LLM serving runtime."},
        "paths": _paths(API_ROUTES, models, needs_key),
        "components": {"schemas": schemas},
    }
    if needs_key:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    return document


def _types(route: ApiRoute) -> Iterable[type[Struct]]:
    return (type_ for type_ in (route.request, route.response, route.error) if type_ is not None)


def _describe_fields(properties: dict[str, Any], type_: type[Struct], models: Sequence[str]) -> None:
    for name in unsupported_fields(type_):
        properties.pop(name, None)
    if "model" in properties:
        properties["model"] = {"enum": list(models)}


def _paths(routes: Iterable[ApiRoute], models: Sequence[str], needs_key: bool) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, models, needs_key)
    return paths


def _operation(route: ApiRoute, models: Sequence[str], needs_key: bool) -> dict[str, Any]:
    statuses = [status for status in route.statuses if status != 401 or needs_key]
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.method.lower() + route.path.replace("/", "_").replace("{", "").replace("}", ""),
        "responses": {"200": _success(route)} | {str(status): _error(route, status) for status in statuses},
    }
    if needs_key and not route.is_open:
        operation["security"] = [{"bearer": []}, {"x-api-key": []}]
    if "{model_id}" in route.path:
        schema: dict[str, Any] = {"enum": list(models)}
        operation["parameters"] = [{"name": "model_id", "in": "path", "required": True, "schema": schema}]
    if route.request is not None:
        content = {"application/json": {"schema": _reference(route.request)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _success(route: ApiRoute) -> dict[str, Any]:
    json: dict[str, Any] = {"schema": _OBJECT if route.response is None else _reference(route.response)}
    text = {"schema": {"type": "string"}}
    contents: dict[Answer, dict[str, Any]] = {
        "json": {"application/json": json},
        "stream or json": {"application/json": json, "text/event-stream": {}},
        "events": {"text/event-stream": {}},
        "text": {"text/plain": text},
    }
    return {"description": route.summary, "content": contents[route.answer]}


def _error(route: ApiRoute, status: int) -> dict[str, Any]:
    error: dict[str, Any] = {
        "description": _REASONS[status],
        "content": {"application/json": {"schema": _reference(route.error or ErrorBody)}},
    }
    if status in (429, 503):
        error["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}}
    return error


def _reference(type_: type[Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=type_.__name__)}
