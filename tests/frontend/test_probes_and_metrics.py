"""Probes, metrics, API keys, the access log."""

import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from fakes import tokens_reply, wait_for
from frontend_server import MODEL, NAME, FrontendServer

from albireo import limits
from albireo.messages import EngineReady, ReplicaDown

COMPLETIONS = "/v1/completions"


@pytest.fixture
def server(tokenizer_path: Path, run_dir: Path) -> Iterator[FrontendServer]:
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74, 75, 76], eos=2)) as server:
        yield server


def status(server: FrontendServer, path: str) -> int:
    return httpx.get(server.url + path).status_code


def metric(server: FrontendServer, name: str) -> float:
    """Sum over the label sets of one sample name."""
    lines = httpx.get(server.url + "/metrics").text.splitlines()
    values = [float(line.split()[-1]) for line in lines if line.split("{")[0] == f"albireo:{name}"]
    assert values, f"no metric {name}"
    return sum(values)


def test_health_is_503_when_the_heartbeat_is_stale(server: FrontendServer) -> None:
    assert status(server, "/health") == 200
    server.stats["heartbeat_ns"] = time.monotonic_ns() - limits.ENGINE_HEARTBEAT_TIMEOUT_NS - 1
    assert status(server, "/health") == status(server, "/ready") == 503
    assert status(server, "/live") == 200
    server.beat()
    assert status(server, "/health") == 200


@pytest.mark.parametrize("field", ["num_running", "num_waiting"])
def test_health_is_503_when_there_is_work_and_no_progress(server: FrontendServer, field: str) -> None:
    server.stats["progress_ns"] = time.monotonic_ns() - limits.ENGINE_PROGRESS_TIMEOUT_NS - 1
    assert status(server, "/health") == 200
    server.stats[field] = 1
    assert status(server, "/health") == 503
    assert "confirms no step" in httpx.get(server.url + "/health").text


def test_while_the_only_engine_starts_again_probes_say_so_and_requests_are_taken(server: FrontendServer) -> None:
    ready = EngineReady(1000)
    server.supervisor.tell(NAME, ReplicaDown(0))
    server.supervisor.tell(NAME, msgspec.structs.replace(ready, computes=False))
    wait_for(lambda: status(server, "/health") == 503)
    assert "starting" in httpx.get(server.url + "/ready").json()["error"]["message"]
    assert status(server, "/live") == 200
    assert httpx.post(server.url + COMPLETIONS, json={"prompt": [5]}).status_code == 200
    server.supervisor.tell(NAME, ready)
    wait_for(lambda: status(server, "/health") == status(server, "/ready") == 200)


def test_version_and_models_answer(server: FrontendServer) -> None:
    assert httpx.get(server.url + "/version").json() == {"version": "0.0.test"}
    card = httpx.get(server.url + "/v1/models").json()["data"][0]
    assert (card["id"], card["max_model_len"]) == (MODEL, 256)


def test_metrics_show_the_engine_s_record(server: FrontendServer) -> None:
    engine = {
        "num_running": 3, "num_waiting": 4, "num_blocks": 100, "num_blocks_used": 25, "prompt_tokens": 1000,
        "generation_tokens": 500, "prefix_cache_queries": 70, "prefix_cache_hits": 30, "num_preemptions": 2,
        "step_device_ns": 1_500_000_000, "swapped_out_blocks": 8, "swapped_in_blocks": 6,
    }  # fmt: skip
    for name, value in engine.items():
        server.stats[name] = value
    shown = {
        "num_requests_running": 3, "num_requests_waiting": 4, "kv_cache_usage_perc": 0.25, "prompt_tokens_total": 1000,
        "generation_tokens_total": 500, "prefix_cache_queries_total": 70, "prefix_cache_hits_total": 30,
        "num_preemptions_total": 2, "swapped_out_blocks_total": 8, "swapped_in_blocks_total": 6,
        "step_device_seconds_total": 1.5,
    }  # fmt: skip
    assert {name: metric(server, name) for name in shown} == shown


def test_metrics_count_requests_and_their_tokens(server: FrontendServer) -> None:
    for prompt in ([5, 6], [5, 6, 7]):
        assert httpx.post(server.url + COMPLETIONS, json={"prompt": prompt}).status_code == 200
    assert metric(server, "request_success_total") == 2
    assert metric(server, "time_to_first_token_seconds_count") == 2
    assert metric(server, "inter_token_latency_seconds_count") == 6
    assert metric(server, "e2e_request_latency_seconds_count") == 2
    assert metric(server, "request_queue_time_seconds_count") == 2
    assert metric(server, "request_time_per_output_token_seconds_count") == 2
    assert metric(server, "request_prompt_tokens_sum") == 5
    assert metric(server, "request_generation_tokens_sum") == 8
    text = httpx.get(server.url + "/metrics").text
    assert f'albireo:request_success_total{{engine="0",finished_reason="stop",model_name="{MODEL}"}} 2.0' in text
    assert 'le="+Inf"' in text


@pytest.fixture
def locked(tokenizer_path: Path, run_dir: Path) -> Iterator[FrontendServer]:
    keys = ("first-key", "zweiter-schlüssel")
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74]), api_keys=keys) as server:
        yield server


def raw_get(server: FrontendServer, path: str, *headers: str) -> bytes:
    """A request that no client library would tidy up."""
    request = "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""])
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request.encode())
        return connection.makefile("rb").read()


@pytest.mark.parametrize(
    "path",
    [COMPLETIONS, "/v1/models", "/metrics", "/version", "/nothing", "/health/", "//health", "/v1/../health", "/Health"],
)
def test_every_route_but_the_probes_needs_a_key(locked: FrontendServer, path: str) -> None:
    for header in ("X: y", "Authorization: Bearer wrong", "Authorization: first-key", "Authorization: Bearer "):
        answer = raw_get(locked, path, header)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"www-authenticate: Bearer" in answer
        assert b"invalid_api_key" in answer


def test_probes_need_no_key_whatever_the_host_header_says(locked: FrontendServer) -> None:
    for path in ("/health", "/live", "/ready"):
        assert status(locked, path) == 200
    for host in ("x/health", "localhost/live?"):
        assert raw_get(locked, "/v1/models", f"Host: {host}").startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("key", ["first-key", "zweiter-schlüssel"])
def test_any_of_the_keys_opens(locked: FrontendServer, key: str) -> None:
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {key}".encode()}
        assert httpx.get(locked.url + "/v1/models", headers=headers).status_code == 200  # type: ignore[arg-type]


def test_keys_and_probes_work_under_a_root_path(tokenizer_path: Path, run_dir: Path) -> None:
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74]), api_keys=("k",), root_path="/llm") as server:
        assert status(server, "/health") == 200
        assert status(server, "/v1/models") == 401
        assert httpx.get(server.url + "/v1/models", headers={"Authorization": "Bearer k"}).status_code == 200


def test_the_access_log_has_a_line_per_request_and_no_line_breaks(
    tokenizer_path: Path, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO, "albireo.access"),
        FrontendServer(run_dir, tokenizer_path, tokens_reply([74]), access_log=True) as server,
    ):
        httpx.get(server.url + "/v1/mod%0aels")
        httpx.post(server.url + COMPLETIONS, json={"prompt": "x"})
        wait_for(lambda: len(caplog.records) >= 2)
    lines = [record.getMessage() for record in caplog.records if record.name == "albireo.access"]
    assert "GET '/v1/mod\\nels' 404" in lines[0]
    assert "POST '/v1/completions' 200" in lines[1]
