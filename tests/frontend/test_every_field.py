"""Every field of every endpoint, from the types themselves: what the document rules out is a 400 that names the field,
and what it allows is never a 5xx."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import tokens_reply
from frontend_server import MODEL, FrontendServer
from jsonschema import Draft202012Validator

MESSAGES = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": MODEL, "prompt": "Hello", "max_tokens": 4},
    "/v1/chat/completions": {"model": MODEL, "messages": MESSAGES, "max_tokens": 4},
    "/v1/responses": {"model": MODEL, "input": "Hello", "max_output_tokens": 4},
    "/v1/messages": {"model": MODEL, "messages": MESSAGES, "max_tokens": 4},
    "/v1/messages/count_tokens": {"model": MODEL, "messages": MESSAGES},
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [5]},
}
VALUES: list[Any] = [
    True, -1, 0, 1, 3, 10**12, -(10**12), 0.5, -7.25, 1e300, "", "x", "auto", "x" * 5000, [], [[]], ["x"], [-5],
    [3] * 2000, {}, {"a": {}}, {"type": "none"}, {"5": 1e9}, [{"role": "user"}], [{"type": "function"}], [None],
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontendServer]:
    with FrontendServer(tmp_path_factory.mktemp("run"), tokenizer_path, tokens_reply([74], eos=2)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: FrontendServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    return document


def message_of(response: httpx.Response) -> str:
    """OpenAI's and Anthropic's error bodies have it in one place."""
    text: str = response.json()["error"]["message"]
    return text


def test_every_route_that_takes_a_body_is_here(document: dict[str, Any]) -> None:
    assert set(BODIES) == {path for path, operations in document["paths"].items() if "post" in operations}


@pytest.mark.parametrize("path", BODIES)
def test_what_the_document_rules_out_is_a_400_that_names_the_field(
    client: httpx.Client, document: dict[str, Any], path: str
) -> None:
    reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    num_refused = 0
    for name, rules in schema["properties"].items():
        validator = Draft202012Validator(rules | {"components": document["components"]})
        for value in VALUES:
            response = client.post(path, json=BODIES[path] | {name: value})
            case = (name, str(value)[:60], response.status_code, response.text[:300])
            assert response.status_code < 500, case
            if not validator.is_valid(value):
                num_refused += 1
                assert response.status_code == (404 if name == "model" and isinstance(value, str) else 400), case
                assert name in message_of(response), case
    assert num_refused > 5 * len(schema["properties"])


@pytest.mark.parametrize("path", BODIES)
def test_what_is_no_object_of_known_fields_is_a_400(client: httpx.Client, path: str) -> None:
    headers = {"content-type": "application/json"}
    for body in (b"", b"[]", b'"x"', b"{", b'{"a": NaN}', b"\xff\xfe", b"[" * 10_000, b'{"model": "\\ud800"}'):
        response = client.post(path, content=body, headers=headers)
        assert response.status_code == 400, body[:20]
        assert message_of(response)
    unknown = client.post(path, json=BODIES[path] | {"no_such_field": 1})
    assert unknown.status_code == 400 and "no_such_field" in message_of(unknown)
    twice = client.post(path, content=b'{"model": "a", "model": "b"}', headers=headers)
    assert twice.status_code == 400 and "twice" in message_of(twice)
