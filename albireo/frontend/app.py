"""The ASGI application: routes and what every request passes through."""

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from albireo.frontend.access_log import AccessLogMiddleware
from albireo.frontend.anthropic.endpoints import CountTokens, Messages
from albireo.frontend.auth import OPEN_PATHS, ApiKeyMiddleware
from albireo.frontend.chat import ChatCompletions
from albireo.frontend.completions import Completions
from albireo.frontend.engine_events import EngineEvents
from albireo.frontend.error_boundary import ErrorBoundary
from albireo.frontend.gpu_metrics import GpuMetrics
from albireo.frontend.health import health, live, ready
from albireo.frontend.json_response import send_json
from albireo.frontend.metrics import MetricsCollector
from albireo.frontend.models import Models
from albireo.frontend.page import page_routes
from albireo.frontend.part_metrics import PartMetrics
from albireo.frontend.responses.endpoint import Responses
from albireo.frontend.service import Service
from albireo.shm.stats import EngineStats


def build_app(service: Service) -> ASGIApp:
    """From the inside out: routes, API keys, errors, access log."""
    config = service.config
    page = page_routes() if config.web_page else []
    app: ASGIApp = Router(
        [
            Route("/v1/completions", Completions(service), methods=["POST"]),
            Route("/v1/chat/completions", ChatCompletions(service), methods=["POST"]),
            Route("/v1/responses", Responses(service), methods=["POST"]),
            Route("/v1/messages", Messages(service), methods=["POST"]),
            Route("/v1/messages/count_tokens", CountTokens(service), methods=["POST"]),
            Route("/v1/models", Models(service), methods=["GET"]),
            Route("/v1/models/{model_id:path}", Models(service), methods=["GET"]),
            Route("/health", health(service), methods=["GET"]),
            Route("/live", live(service), methods=["GET"]),
            Route("/ready", ready(service), methods=["GET"]),
            Route("/metrics", Metrics(service), methods=["GET"]),
            Route("/version", Version(config.version), methods=["GET"]),
            Route("/engine/events", EngineEvents(service), methods=["GET"]),
            *page,
        ],
        redirect_slashes=False,
    )
    if config.api_keys:
        app = ApiKeyMiddleware(app, config.api_keys, {*OPEN_PATHS, *(route.path for route in page)})
    app = ErrorBoundary(app)
    return AccessLogMiddleware(app) if config.access_log else app


class Metrics:
    """ASGI endpoint: Prometheus text."""

    def __init__(self, service: Service) -> None:
        config = service.config
        self._registry = CollectorRegistry()
        self._registry.register(MetricsCollector(service.model_name, config.scheduler, service.stats, service.metrics))
        self._registry.register(PartMetrics(service.model_name, service.config.segments.flight.values()))
        devices = EngineStats(service.config.segments.stats).devices
        self._registry.register(GpuMetrics(service.model_name, devices, service.clock_ns))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = generate_latest(self._registry)
        headers = [(b"content-type", CONTENT_TYPE_LATEST.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Version:
    """ASGI endpoint: this server's version."""

    def __init__(self, version: str) -> None:
        self._body = msgspec.json.encode({"version": version})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, self._body)
