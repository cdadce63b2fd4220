"""What a server writes about its requests, and what it never does."""

import json
import urllib.error
from collections.abc import Iterator
from typing import Any

import pytest
from server import Server

pytestmark = pytest.mark.e2e
Body = dict[str, Any]
MARKER = "xylophone-73"
REQUESTS: dict[str, Body] = {
    "/v1/completions": {"prompt": MARKER, "max_tokens": 3},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": MARKER}], "max_tokens": 3},
    "/v1/messages": {"model": "x", "messages": [{"role": "user", "content": MARKER}], "max_tokens": 3},
    "/v1/responses": {"input": MARKER, "max_output_tokens": 3},
    "/tokenize": {"prompt": MARKER},
    "/v1/embeddings": {"input": MARKER},
}
WRONG: tuple[Body, ...] = (
    {"prompt": MARKER, "max_tokens": -1},
    {"prompt": [MARKER, 3]},
    {"prompt": MARKER * 3000},
    {"suffix": MARKER},
    {"prompt": MARKER, "structured_outputs": {"regex": f"({MARKER}"}, "max_tokens": 3},
)


@pytest.fixture(scope="module", params=["info", "debug"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    flags = ("--log-level", request.param, "--log-format", "json", "--max-model-len", "256", "--kv-cache-bytes", "64M")
    with Server(*flags) as server:
        yield server


def test_no_prompt_is_logged_and_every_line_is_an_object(server: Server) -> None:
    for path, body in REQUESTS.items():
        _answer(server, path, body)
    for body in WRONG:
        _answer(server, "/v1/completions", body)
    server.process.terminate()
    assert server.wait() == 0
    assert not [line for line in server.lines if "xylophone" in line]
    events = [json.loads(line) for line in server.lines]
    assert {event["process"] for event in events} >= {"supervisor", "frontend-0"}
    requests = [event for event in events if event.get("path") == "/v1/completions"]
    assert [event["status"] for event in requests] == [200, *[400] * len(WRONG)]
    assert len({event["request_id"] for event in requests}) == len(requests)


def _answer(server: Server, path: str, body: Body) -> None:
    try:
        server.post(path, body)
    except urllib.error.HTTPError as error:
        error.close()
