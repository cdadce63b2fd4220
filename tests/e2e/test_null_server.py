"""`albireo-run serve --device null`: all processes, no model."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

import pytest
from server import Server, eventually

pytestmark = pytest.mark.e2e

BODY = {"model": "albireo-demo", "prompt": "Hello", "max_tokens": 40, "seed": 3}


def request_to(server: Server, path: str, body: dict[str, Any]) -> urllib.request.Request:
    return urllib.request.Request(server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})


def streamed_text(server: Server) -> str:
    with urllib.request.urlopen(request_to(server, "/v1/completions", BODY | {"stream": True})) as response:
        events = [line[6:] for line in response.read().decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])


def test_ranks_of_the_null_device_stream_one_printable_text() -> None:
    texts = set()
    for size in (1, 2):
        with Server("--device", "null", "-tp", str(size), "--null-step-ms", "1") as server:
            answer = server.post("/v1/completions", BODY)
            assert answer["usage"]["completion_tokens"] == 40
            texts |= {answer["choices"][0]["text"], streamed_text(server)}
            assert "device null" in "\n".join(server.lines) or "device 2 x null" in "\n".join(server.lines)
        assert server.wait() == 0
    (text,) = texts
    assert len(text) == 40
    assert text.isprintable()


def test_who_waits_behind_a_long_stream_is_told_to_come_again_and_the_stream_goes_on() -> None:
    flags = ("--device", "null", "--null-step-ms", "50", "--max-num-seqs", "1", "--queue-timeout", "0.5")
    chat = {"model": "albireo-demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
    with Server(*flags) as server:
        long = BODY | {"max_tokens": 1500, "ignore_eos": True, "stream": True}
        with urllib.request.urlopen(request_to(server, "/v1/completions", long)) as stream:
            assert stream.readline().startswith(b"data: ")
            for path, body in (("/v1/completions", BODY), ("/v1/messages", chat)):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    server.post(path, body)
                assert refused.value.code == 503
                assert refused.value.headers["Retry-After"]
                assert "has waited 0.5 seconds for its first step" in refused.value.read().decode()
            assert server.metric("albireo:num_requests_running") == 1
        assert server.metric("albireo:request_success_total", finished_reason="timeout") == 2
        assert eventually(lambda: server.metric("albireo:kv_cache_usage_perc") == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--null-step-ms", "1"], "--null-step-ms is for --device null, not for cpu"),
        (["--device", "null", "--null-step-ms", "-1"], "--null-step-ms -1 is out of range: between 0 and 500"),
        (["--device", "null", "--null-step-ms", "nan"], "--null-step-ms nan is out of range: between 0 and 500"),
        (["--queue-timeout", "nan"], "--queue-timeout nan is out of range: 0 for none, or 0.1 to 86400 seconds"),
        (["--queue-timeout", "-1"], "--queue-timeout -1 is out of range: 0 for none, or 0.1 to 86400 seconds"),
        (["--device", "null", "--cpu-threads", "2"], "--cpu-threads is for --device cpu, not for null"),
        (["--device", "null", "--collectives", "gloo"], "--collectives gloo is not for --device null"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_flags_that_make_no_sense_are_refused_in_one_line(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "albireo.cli", "serve", "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
