"""Fields that are kept as they came, and read later or never: what no reader could read is a 400 all the same."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import tokens_reply
from frontend_server import FrontendServer
from test_every_field import BODIES

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
UNREADABLE = ["1e999", "-1e400", "[1e400]", "9" * 5000, '{"a": [{"b": 1e999}]}', '"\\ud800"']
"""JSON by its grammar."""
HOLE = "@"
PLACES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"maximum": HOLE}}}}),
    (CHAT, {"structured_outputs": {"json": {"maximum": HOLE}}}),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"maximum": HOLE}}}]}),
    (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"maximum": HOLE}}}}),
    (RESPONSES, {"tools": [{"type": "function", "name": "f", "parameters": {"maximum": HOLE}}]}),
    (MESSAGES, {"tools": [{"name": "f", "input_schema": {"maximum": HOLE}}]}),
]
"""Inside of other fields."""


@pytest.fixture(scope="module")
def server(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontendServer]:
    with FrontendServer(tmp_path_factory.mktemp("run"), tokenizer_path, tokens_reply([74], eos=2)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: FrontendServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"content-type": "application/json"}) as client:
        yield client


def post(client: httpx.Client, path: str, change: dict[str, Any], value: str) -> httpx.Response:
    """With JSON that Python would not write in the place of the hole."""
    return client.post(path, content=json.dumps(BODIES[path] | change).replace(f'"{HOLE}"', value).encode())


@pytest.mark.parametrize("path", BODIES)
def test_what_cannot_be_read_is_a_400_in_every_field(client: httpx.Client, path: str) -> None:
    document = client.get("/openapi.json").json()
    reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    for name in document["components"]["schemas"][reference.rsplit("/", 1)[1]]["properties"]:
        for value in UNREADABLE:
            response = post(client, path, {name: HOLE}, value)
            assert response.status_code == 400, (name, value[:20], response.text[:200])


@pytest.mark.parametrize("value", UNREADABLE, ids=lambda value: value[:20])
@pytest.mark.parametrize(("path", "change"), PLACES, ids=lambda value: str(value)[:50])
def test_what_cannot_be_read_is_a_400_inside_of_fields(
    client: httpx.Client, path: str, change: dict[str, Any], value: str
) -> None:
    response = post(client, path, change, value)
    assert response.status_code == 400, response.text[:200]


def test_a_number_out_of_range_is_told_with_its_name(client: httpx.Client) -> None:
    for path, change in PLACES:
        for value in ("1e999", "[-1e999]", "9" * 5000):
            error = post(client, path, change, value).json()["error"]
            assert error["message"] == "maximum must be within the range of a 64-bit float"
    assert post(client, CHAT, {"verbosity": HOLE}, "1e999").json()["error"]["param"] == "verbosity"


@pytest.mark.parametrize("key", ["$defs", "definitions"])
@pytest.mark.parametrize("value", ["[1]", "null", '"x"'])
def test_definitions_of_a_tool_that_are_no_object_are_a_400(client: httpx.Client, key: str, value: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {key: HOLE}}}
    response = post(client, CHAT, {"tools": [tool], "tool_choice": "required"}, value)
    assert response.status_code == 400
    assert f"{key} that is no object" in response.json()["error"]["message"]
