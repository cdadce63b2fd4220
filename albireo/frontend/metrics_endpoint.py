"""`GET /metrics`."""

import itertools
from collections.abc import Iterable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from starlette.types import Receive, Scope, Send

from albireo.frontend.gpu_metrics import GpuMetrics
from albireo.frontend.metrics import MetricsCollector
from albireo.frontend.part_metrics import PartMetrics
from albireo.frontend.service import Service
from albireo.shm.stats import EngineStats


class OfReplicas(Collector):
    """The same metrics of all replicas, which differ in the label `engine`."""

    def __init__(self, collectors: Sequence[Sequence[Collector]]) -> None:
        """`collectors`: of each replica."""
        self._collectors = collectors

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for collector in itertools.chain.from_iterable(self._collectors):
            for family in collector.collect():
                first = families.setdefault(family.name, family)
                if first is not family:
                    first.samples += family.samples
        return families.values()


class Metrics:
    """ASGI endpoint: Prometheus text."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(OfReplicas([_collectors(service, number) for number in range(len(service.stats))]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = generate_latest(self._registry)
        headers = [(b"content-type", CONTENT_TYPE_LATEST.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _collectors(service: Service, replica: int) -> list[Collector]:
    """Of one replica."""
    labels = (service.model_name, str(replica))
    segments = service.config.replicas[replica]
    return [
        MetricsCollector(labels, service.config.scheduler, service.stats[replica], service.metrics[replica]),
        PartMetrics(labels, segments.flight.values()),
        GpuMetrics(labels, EngineStats(segments.stats).devices, service.clock_ns),
    ]
