"""The ASGI application: routes and what every request passes through."""

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from albireo.frontend.access_log import AccessLogMiddleware
from albireo.frontend.api_routes import API_ROUTES
from albireo.frontend.auth import OPEN_PATHS, ApiKeyMiddleware
from albireo.frontend.error_boundary import ErrorBoundary
from albireo.frontend.openapi import OpenApi
from albireo.frontend.page import page_routes
from albireo.frontend.request_ids import RequestIdMiddleware
from albireo.frontend.service import Service


def build_app(service: Service) -> ASGIApp:
    """From the inside out: routes, API keys, errors, origins, access log, request ids."""
    config = service.config
    page = page_routes() if config.web_page else []
    routes = [
        # a model's name may have slashes
        Route(route.path.replace("{model_id}", "{model_id:path}"), route.make(service), methods=[route.method])
        for route in API_ROUTES
    ]
    openapi = Route("/openapi.json", OpenApi(service), methods=["GET"])
    app: ASGIApp = Router([*routes, openapi, *page], redirect_slashes=False)
    app = ApiKeyMiddleware(app, service.api_keys, {*OPEN_PATHS, *(route.path for route in page)})
    app = ErrorBoundary(app)
    if config.allowed_origins:  # in front of the keys: a browser asks without one whether it may ask
        app = CORSMiddleware(
            app,
            allow_origins=config.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    if config.access_log:
        app = AccessLogMiddleware(app)
    return RequestIdMiddleware(app, config.request_id_headers)
