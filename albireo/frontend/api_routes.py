"""Every route of the API in one table: what drives the router and what is written into the OpenAPI document."""

from collections.abc import Callable, Sequence
from typing import Literal

from msgspec import Struct
from starlette.types import ASGIApp

from albireo.errors import AnthropicErrorBody, ErrorBody
from albireo.frontend.anthropic.endpoints import CountTokens, Messages
from albireo.frontend.anthropic.requests import CountTokensRequest, MessagesRequest
from albireo.frontend.chat import ChatCompletions
from albireo.frontend.completions import Completions
from albireo.frontend.engine_events import EngineEvents
from albireo.frontend.health import health, live, ready
from albireo.frontend.metrics_endpoint import Metrics
from albireo.frontend.models import Models
from albireo.frontend.requests import ChatRequest, CompletionRequest
from albireo.frontend.responses.endpoint import Responses
from albireo.frontend.responses.requests import ResponsesRequest
from albireo.frontend.service import Service
from albireo.frontend.tokenize import (
    Detokenize,
    DetokenizeRequest,
    DetokenizeResponse,
    Tokenize,
    TokenizeRequest,
    TokenizeResponse,
)
from albireo.frontend.version import Version

Answer = Literal["json", "stream or json", "events", "text"]

GENERATES = (400, 401, 404, 413, 415, 429, 500, 503)
"""Statuses of what asks the engine for something, beside 200."""
READS_BODY = (400, 401, 404, 413, 415, 429, 500, 503)


class ApiRoute(Struct, frozen=True):
    """One of them."""

    method: Literal["GET", "POST"]
    path: str
    make: Callable[[Service], ASGIApp]
    summary: str
    answer: Answer = "json"
    request: type[Struct] | None = None
    response: type[Struct] | None = None
    """None: an object that the API's own documentation describes."""
    statuses: Sequence[int] = (401,)
    """Of errors."""
    error: type[Struct] = ErrorBody
    is_open: bool = False
    """It needs no key."""


API_ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("POST", "/v1/completions", Completions, "Continue prompts (OpenAI)",
             "stream or json", CompletionRequest, statuses=GENERATES),
    ApiRoute("POST", "/v1/chat/completions", ChatCompletions, "The assistant's next message (OpenAI)",
             "stream or json", ChatRequest, statuses=GENERATES),
    ApiRoute("POST", "/v1/responses", Responses, "The assistant's next items (OpenAI)",
             "stream or json", ResponsesRequest, statuses=GENERATES),
    ApiRoute("POST", "/v1/messages", Messages, "The assistant's next message (Anthropic)",
             "stream or json", MessagesRequest, statuses=GENERATES, error=AnthropicErrorBody),
    ApiRoute("POST", "/v1/messages/count_tokens", CountTokens, "Length of a prompt (Anthropic)",
             "json", CountTokensRequest, statuses=GENERATES, error=AnthropicErrorBody),
    ApiRoute("POST", "/tokenize", Tokenize, "Token ids of a prompt or a chat",
             "json", TokenizeRequest, TokenizeResponse, READS_BODY),
    ApiRoute("POST", "/detokenize", Detokenize, "Text of token ids",
             "json", DetokenizeRequest, DetokenizeResponse, READS_BODY),
    ApiRoute("GET", "/v1/models", Models, "The served model's names"),
    ApiRoute("GET", "/v1/models/{model_id}", Models, "One of the names", statuses=(401, 404)),
    ApiRoute("GET", "/health", health, "Whether the engine makes progress", statuses=(503,), is_open=True),
    ApiRoute("GET", "/live", live, "Whether this process answers", statuses=(), is_open=True),
    ApiRoute("GET", "/ready", ready, "Whether a request would be taken", statuses=(503,), is_open=True),
    ApiRoute("GET", "/metrics", Metrics, "Metrics for Prometheus", "text"),
    ApiRoute("GET", "/version", lambda service: Version(service.config.version), "The server's version"),
    ApiRoute("GET", "/engine/events", EngineEvents, "The engine's state, as it goes", "events", statuses=(401, 429)),
)  # fmt: skip
