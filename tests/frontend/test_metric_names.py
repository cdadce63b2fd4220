"""The metrics that dashboards ask for: vLLM's names with another prefix, with their types and labels."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from dashboard_queries import all_panels, metric_names
from fakes import tokens_reply
from frontend_server import FrontendServer
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

USUAL = {"model_name", "engine"}
GAUGES = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "cpu_cache_usage_perc",
    "run_ahead_depth",
)
COUNTERS = (
    "prefix_cache_queries", "prefix_cache_hits", "prompt_tokens", "prompt_tokens_cached", "generation_tokens",
    "num_preemptions", "swapped_out_blocks", "swapped_in_blocks", "step_device_seconds", "step_exposed_seconds",
)  # fmt: skip
HISTOGRAMS = (
    "iteration_tokens_total", "time_to_first_token_seconds", "inter_token_latency_seconds",
    "request_time_per_output_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
    "request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds",
    "request_prompt_tokens", "request_generation_tokens", "request_params_n", "request_params_max_tokens",
    "request_max_num_generation_tokens", "request_prefill_kv_computed_tokens",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontendServer]:
    with FrontendServer(tmp_path_factory.mktemp("run"), tokenizer_path, tokens_reply([74, 75], eos=2)) as server:
        yield server


def families(server: FrontendServer) -> dict[str, Metric]:
    text = httpx.get(server.url + "/metrics").text
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.mark.parametrize(
    ("kind", "names", "suffixes"),
    [
        ("gauge", GAUGES, {""}),
        ("counter", COUNTERS, {"_total"}),
        ("histogram", HISTOGRAMS, {"_bucket", "_count", "_sum"}),
    ],
)
def test_every_metric_has_its_type_and_labels(
    server: FrontendServer, kind: str, names: tuple[str, ...], suffixes: set[str]
) -> None:
    shown = families(server)
    for name in names:
        metric = shown["albireo:" + name]
        assert metric.type == kind
        assert {sample.name.removeprefix(metric.name) for sample in metric.samples} == suffixes
        for sample in metric.samples:
            assert set(sample.labels) - {"le"} == USUAL, sample


def test_every_metric_that_vllm_s_dashboards_ask_for_is_there(server: FrontendServer) -> None:
    samples = {sample.name for family in families(server).values() for sample in family.samples}
    panels = all_panels()
    assert len(panels) > 60
    for panel in panels:
        assert metric_names(panel.query), panel
        assert metric_names(panel.query) <= samples, panel


def test_ends_are_told_apart_by_reason(server: FrontendServer) -> None:
    samples = families(server)["albireo:request_success"].samples
    assert {sample.labels["finished_reason"] for sample in samples} == {"stop", "length", "abort", "error", "timeout"}
    assert all(set(sample.labels) == USUAL | {"finished_reason"} for sample in samples)


def test_the_cache_s_settings_are_labels(server: FrontendServer) -> None:
    server.stats["num_blocks"] = 100
    (sample,) = families(server)["albireo:cache_config_info"].samples
    assert sample.value == 1
    settings = {"block_size": "16", "num_gpu_blocks": "100", "num_cpu_blocks": "0", "enable_prefix_caching": "True"}
    assert {name: sample.labels[name] for name in settings} == settings


def test_a_request_of_several_samples_is_counted_once_where_the_request_counts(server: FrontendServer) -> None:
    def sums(name: str) -> tuple[float, float]:
        values = {sample.name: sample.value for sample in families(server)["albireo:" + name].samples}
        return values[f"albireo:{name}_count"], values[f"albireo:{name}_sum"]

    body = {"prompt": [[5, 6], [5, 6, 7]], "n": 3, "max_tokens": 9}
    assert httpx.post(server.url + "/v1/completions", json=body).status_code == 200
    assert sums("request_params_n") == (2, 6)
    assert sums("request_max_num_generation_tokens") == (2, 6)
    assert sums("request_generation_tokens") == (6, 18)
    assert sums("request_params_max_tokens") == (6, 54)
    assert sums("request_prefill_kv_computed_tokens") == (6, 15)


def test_steps_are_counted_by_their_tokens(server: FrontendServer) -> None:
    server.stats["iteration_tokens"]["buckets"][0, :3] = (4, 0, 2)
    server.stats["iteration_tokens"]["sum"] = 36
    values = [sample.value for sample in families(server)["albireo:iteration_tokens_total"].samples]
    assert values[:4] == [4, 4, 6, 6]
    assert values[-2:] == [6, 36]
