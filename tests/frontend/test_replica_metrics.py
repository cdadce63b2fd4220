"""/metrics of several replicas: each family once, a line for each replica in it."""

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from albireo.config import SchedulerConfig
from albireo.frontend.metrics import MetricsCollector
from albireo.frontend.metrics_endpoint import OfReplicas
from albireo.frontend.request_metrics import RequestMetrics
from albireo.shm.layout import ENGINE_STATS, REQUEST_COUNTS


def test_each_replica_has_its_own_lines_under_one_heading() -> None:
    stats, counts = np.zeros(2, ENGINE_STATS), np.zeros(4, REQUEST_COUNTS)  # two frontends
    stats["generation_tokens"] = 5, 7
    metrics = [RequestMetrics(own, 1) for own in np.split(counts, 2)]
    for number, own in enumerate(metrics):
        own.time_to_first_token.observe(0.5, count=1 + number)
    registry = CollectorRegistry()
    registry.register(
        OfReplicas([
            [MetricsCollector(("m", str(number)), SchedulerConfig(), stats[number : number + 1], metrics[number])]
            for number in range(2)
        ])
    )  # fmt: skip
    text = generate_latest(registry).decode()
    headings = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(set(headings)) == len(headings)
    found = {
        sample.labels["engine"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "albireo:generation_tokens_total"
    }
    assert found == {"0": 5, "1": 7}
    assert 'albireo:time_to_first_token_seconds_count{engine="0",model_name="m"} 1.0' in text
    assert 'albireo:time_to_first_token_seconds_count{engine="1",model_name="m"} 2.0' in text
    assert counts["time_to_first_token"]["sum"].tolist() == [0, 0.5, 0, 1.0]
