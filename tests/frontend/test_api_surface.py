"""What every request passes through, and the routes that speak of tokens."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import endless_reply, tokens_reply
from frontend_server import MODEL, FrontendServer
from tokenizers import Tokenizer

ORIGIN = "https://chat.example"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def server(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontendServer]:
    changes: dict[str, Any] = {
        "api_keys": ("one", "two"), "allowed_origins": (ORIGIN,), "request_id_headers": True,
    }  # fmt: skip
    with FrontendServer(tmp_path_factory.mktemp("run"), tokenizer_path, tokens_reply([74], eos=2), **changes) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: FrontendServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"Authorization": "Bearer two"}) as client:
        yield client


def test_tokens_of_a_prompt_and_back(client: httpx.Client, tokenizer: Tokenizer) -> None:
    text = "Hello, wörld 😀"
    answer = client.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert answer["tokens"] == tokenizer.encode(text).ids
    assert answer["count"] == len(answer["tokens"]) and answer["max_model_len"] == 256
    assert answer["token_strs"] == tokenizer.encode(text).tokens
    assert client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}


def test_tokens_of_a_chat_are_those_that_the_chat_has(server: FrontendServer, client: httpx.Client) -> None:
    count = client.post("/tokenize", json={"messages": CHAT["messages"], "model": MODEL}).json()["count"]
    assert client.post("/v1/chat/completions", json=CHAT).json()["usage"]["prompt_tokens"] == count
    counted = client.post("/v1/messages/count_tokens", json={"model": MODEL, "messages": CHAT["messages"]}).json()
    assert counted == {"input_tokens": count}


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": CHAT["messages"]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": []}, 400, "tools"),
        ("/tokenize", {"messages": CHAT["messages"], "add_special_tokens": True}, 400, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, 400, "chat_template"),
        ("/detokenize", {"tokens": [1, 402]}, 400, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {}, 400, "tokens"),
    ],
)
def test_wrong_token_requests_name_the_field(
    client: httpx.Client, path: str, body: dict[str, Any], status: int, field: str
) -> None:
    response = client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, field)


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer three"}, {"Authorization": "two"}, {"x-api-key": "t"}]
)
def test_every_route_but_the_probes_is_denied_without_a_key(server: FrontendServer, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=server.url, headers=headers) as stranger:
        document = httpx.get(server.url + "/openapi.json", headers={"x-api-key": "one"}).json()
        paths: dict[str, Any] = document["paths"]
        assert len(paths) > 12
        for path, operations in [*paths.items(), ("/openapi.json", {"get": {}}), ("/nothing", {"post": {}})]:
            for method in operations:
                response = stranger.request(method, path.replace("{model_id}", "x"), headers={"Host": "health"})
                is_open = path in ("/health", "/live", "/ready")
                assert (response.status_code == 401) != is_open, (method, path)


def test_both_kinds_of_key_are_taken(server: FrontendServer) -> None:
    for headers in ({"Authorization": "bearer one"}, {"x-api-key": "two"}):
        assert httpx.get(server.url + "/version", headers=headers).status_code == 200


def test_pages_of_an_allowed_origin_may_ask(server: FrontendServer, client: httpx.Client) -> None:
    asks = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    allowed = httpx.options(server.url + "/v1/chat/completions", headers=asks)  # without a key
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == ORIGIN
    denied = httpx.options(server.url + "/v1/chat/completions", headers=asks | {"Origin": "https://evil.example"})
    assert denied.status_code == 400
    answer = client.post("/v1/chat/completions", json=CHAT, headers={"Origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    wrong = client.post("/v1/chat/completions", json={}, headers={"Origin": ORIGIN})
    assert wrong.status_code == 400 and wrong.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-origin" not in client.get("/version").headers


def test_each_response_has_a_request_id(client: httpx.Client) -> None:
    assert client.get("/version", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    names = {client.get("/version").headers["x-request-id"] for _ in range(3)}
    assert len(names) == 3 and all(re.fullmatch("[0-9a-f]{32}", name) for name in names)
    odd = client.get("/version", headers={"X-Request-Id": "x" * 129}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", odd)
    assert client.get("/nothing", headers={"X-Request-Id": "mine-2"}).headers["x-request-id"] == "mine-2"


def test_who_comes_when_too_many_wait_is_told_to_come_back(tokenizer_path: Path, tmp_path: Path) -> None:
    with FrontendServer(tmp_path, tokenizer_path, endless_reply([74]), step_s=0.05, max_num_waiting=3) as server:
        server.stats["num_waiting"] = 3
        response = httpx.post(server.url + "/v1/completions", json={"prompt": "a"})
        assert response.status_code == 429 and int(response.headers["retry-after"]) > 0
        assert response.json()["error"]["type"] == "rate_limit_error"
        anthropic = {"model": MODEL, "max_tokens": 1, "messages": CHAT["messages"]}
        assert httpx.post(server.url + "/v1/messages", json=anthropic).json()["error"]["type"] == "rate_limit_error"
        server.stats["num_waiting"] = 2
        server.beat()
        assert httpx.post(server.url + "/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200


def test_the_document_names_every_route_with_its_request_s_type(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    schemas = document["components"]["schemas"]
    for path, name in (
        ("/v1/completions", "CompletionRequest"), ("/v1/chat/completions", "ChatRequest"),
        ("/v1/responses", "ResponsesRequest"), ("/v1/messages", "MessagesRequest"), ("/tokenize", "TokenizeRequest"),
    ):  # fmt: skip
        operation = document["paths"][path]["post"]
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert reference == f"#/components/schemas/{name}"
        assert {"200", "400", "401", "413"} <= set(operation["responses"])
    assert schemas["CompletionRequest"]["properties"]["n"]["anyOf"][0]["maximum"] == 128
    assert schemas["CompletionRequest"]["additionalProperties"] is False
