"""`GET /metrics`."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.types import Receive, Scope, Send

from albireo.frontend.gpu_metrics import GpuMetrics
from albireo.frontend.metrics import MetricsCollector
from albireo.frontend.part_metrics import PartMetrics
from albireo.frontend.service import Service
from albireo.shm.stats import EngineStats


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
