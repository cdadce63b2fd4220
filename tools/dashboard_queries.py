"""What the panels of vLLM's example dashboards ask Prometheus, with `albireo:` in place of `vllm:`.

$model_name, $Deployment_id, $__rate_interval and $__range are Grafana's variables.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ONE = '{model_name="$model_name"}'
_ANY = '{model_name=~"$Deployment_id"}'
_RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """One query of a panel."""

    dashboard: str
    title: str
    query: str


def metric_names(query: str) -> set[str]:
    """The names of our metrics in a query."""
    return set(re.findall(r"albireo:\w+", query))


def filled(query: str, model_name: str, rate_interval: str, range_: str) -> str:
    """With Grafana's variables replaced."""
    for name, value in (
        ("$model_name", model_name), ("$Deployment_id", re.escape(model_name).replace("\\", "\\\\")),
        ("$__rate_interval", rate_interval), ("$__range", range_),
    ):  # fmt: skip
        query = query.replace(name, value)
    return query


def all_panels() -> list[Panel]:
    """Of prometheus_grafana/grafana.json, performance_statistics.json and query_statistics.json."""
    sources = (("grafana", _grafana()), ("performance", _performance()), ("query", _query()))
    return [Panel(name, title, query) for name, panels in sources for title, query in panels]


def _quantile(share: str, metric: str, by: str = "le", labels: str = "", window: str = _RATE) -> str:
    return f"histogram_quantile({share}, sum by({by}) (rate(albireo:{metric}_bucket{labels}{window})))"


def _grafana() -> Iterator[tuple[str, str]]:
    for title, metric in (
        ("E2E Request Latency", "e2e_request_latency_seconds"),
        ("Inter Token Latency", "inter_token_latency_seconds"),
        ("Time To First Token Latency", "time_to_first_token_seconds"),
    ):
        for share in ("0.99", "0.95", "0.9", "0.5"):
            yield title, _quantile(share, metric, labels=_ONE)
        yield title, f"rate(albireo:{metric}_sum{_ONE}{_RATE}) / rate(albireo:{metric}_count{_ONE}{_RATE})"
    for metric in ("prompt_tokens_total", "generation_tokens_total"):
        yield "Token Throughput", f"rate(albireo:{metric}{_ONE}{_RATE})"
    for metric in ("num_requests_running", "num_requests_waiting"):
        yield "Scheduler State", f"albireo:{metric}{_ONE}"
    yield "Cache Utilization", f"albireo:kv_cache_usage_perc{_ONE}"
    for title, metric in (
        ("Request Prompt Length", "request_prompt_tokens"),
        ("Request Generation Length", "request_generation_tokens"),
    ):
        yield title, f"sum by(le) (increase(albireo:{metric}_bucket{_ONE}{_RATE}))"
    yield "Finish Reason", f"sum by(finished_reason) (increase(albireo:request_success_total{_ONE}{_RATE}))"
    yield "Queue Time", f"rate(albireo:request_queue_time_seconds_sum{_ONE}{_RATE})"
    for metric in ("request_prefill_time_seconds", "request_decode_time_seconds"):
        yield "Requests Prefill and Decode Time", f"rate(albireo:{metric}_sum{_ONE}{_RATE})"
    metric = "request_max_num_generation_tokens"
    yield "Max Generation Token in Sequence Group", f"rate(albireo:{metric}_sum{_ONE}{_RATE})"


def _performance() -> Iterator[tuple[str, str]]:
    for title, metric in (
        ("E2E Latency", "e2e_request_latency_seconds"),
        ("TTFT", "time_to_first_token_seconds"),
        ("ITL", "inter_token_latency_seconds"),
    ):
        yield f"{title} over Time", f"rate(albireo:{metric}_sum{_RATE}) / rate(albireo:{metric}_count{_RATE})"
        for share in ("0.99", "0.90", "0.50"):
            yield f"{title} (P{share[2:]})", _quantile(share, metric, window="[$__range]")
            if title == "ITL":
                yield f"{title} over Time", _quantile(share, metric)
        total = f"(sum(increase(albireo:{metric}_sum[$__range])) / sum(increase(albireo:{metric}_count[$__range])))"
        yield f"{title} (Avg)", total
    for metric in ("generation_tokens_total", "prompt_tokens_total", "iteration_tokens_total_count"):
        yield "TPS over Time", f"rate(albireo:{metric}{_RATE})"


def _query() -> Iterator[tuple[str, str]]:
    success = f"rate(albireo:request_success_total{_ANY}{_RATE})"
    yield "Successful Requests Over Time", f"sum by (model_name) ({success})"
    yield "Requests Avg Rate", f"sum({success})"
    for share in ("0.50", "0.90", "0.99"):
        yield f"p{share[2:]} Latency", _quantile(share, "e2e_request_latency_seconds", "le, model_name", _ANY)
        yield f"Input Token Size p{share[2:]}", _quantile(share, "request_prompt_tokens", "le, model_name", _ANY)
    sizes = f"rate(albireo:request_prompt_tokens_bucket{_ANY}{_RATE})"
    yield "Input Token Size Distribution", f"sum by (le, model_name) ({sizes})"
    tokens = f"rate(albireo:prompt_tokens_total{_ANY}{_RATE})"
    yield "Input Token Size Avg", f"sum({tokens}) / sum({success})"
    for title, metric in (("Input", "prompt_tokens_total"), ("Output", "generation_tokens_total")):
        rate = f"rate(albireo:{metric}{_ANY}{_RATE})"
        yield f"{title} Tokens Over Time", f"sum by (model_name) ({rate})"
        yield f"{title} Tokens/Sec Avg", f"sum({rate})"
