"""`albireo-run serve --device null`: all processes, no model."""

import json
import subprocess
import sys
import urllib.request

import pytest
from server import Server

pytestmark = pytest.mark.e2e

BODY = {"model": "albireo-demo", "prompt": "Hello", "max_tokens": 40, "seed": 3}


def streamed_text(server: Server) -> str:
    request = urllib.request.Request(
        f"{server.url}/v1/completions",
        json.dumps(BODY | {"stream": True}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--null-step-ms", "1"], "--null-step-ms is for --device null, not for cpu"),
        (["--device", "null", "--null-step-ms", "-1"], "--null-step-ms -1 is out of range: between 0 and 500"),
        (["--device", "null", "--null-step-ms", "nan"], "--null-step-ms nan is out of range: between 0 and 500"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_flags_that_make_no_sense_are_refused_in_one_line(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "albireo.cli", "serve", "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
