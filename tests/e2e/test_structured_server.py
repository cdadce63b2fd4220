"""Structured output through a whole server: outputs match what was asked for, and nothing else is disturbed."""

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema
import pytest
from server import Server, eventually

from albireo.limits import GRAMMAR_RESTARTS_PER_MINUTE

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
AS_PERSON = {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--kv-cache-bytes", "64M", "--run-ahead", "2", "--dtype", "float32") as server:
        yield server


def post(server: Server, **fields: Any) -> httpx.Response:
    body = {"model": "albireo-demo", "prompt": "Once", "max_tokens": 600} | fields
    return httpx.post(server.url + "/v1/completions", json=body, timeout=60)


def output(server: Server, **fields: Any) -> tuple[str, str]:
    """Text and finish reason."""
    response = post(server, **fields)
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return choice["text"], choice["finish_reason"]


@pytest.mark.parametrize("seed", range(4))
def test_a_json_schema_is_matched(server: Server, seed: int) -> None:
    text, finish = output(server, seed=seed, temperature=1.0, **AS_PERSON)
    assert finish == "stop"
    jsonschema.validate(json.loads(text), PERSON)


def test_only_allowed_tokens_come_and_an_end_only_where_it_is_one(server: Server) -> None:
    def token_ids(**fields: Any) -> list[int]:
        response = post(server, return_token_ids=True, seed=1, temperature=2.0, **fields)
        assert response.status_code == 200, response.text
        found: list[int] = response.json()["choices"][0]["token_ids"]
        return found

    among = token_ids(allowed_token_ids=[300, 301, 302, 400], max_tokens=40)
    assert len(among) == 40 and {*among} <= {300, 301, 302, 400}
    ends = {0, 2}  # of the model: where one may come, any may
    (end,) = token_ids(allowed_token_ids=[2], max_tokens=40)
    assert end in ends
    *others, last = token_ids(allowed_token_ids=[2, 300], logit_bias={"2": 100, "300": 100}, max_tokens=200)
    assert last in ends and {*others} <= {300}


def test_choices_expressions_and_grammars_are_matched(server: Server) -> None:
    assert output(server, structured_outputs={"choice": ['yes, "so"', "no\n"]})[0] in ('yes, "so"', "no\n")
    year, finish = output(server, structured_outputs={"regex": r"(19|20)\d{2}"}, seed=1)
    assert len(year) == 4 and year[:2] in ("19", "20") and year.isdigit() and finish == "stop"
    text, finish = output(server, structured_outputs={"grammar": 'start: "<" /[a-z]{1,5}/ ">"'}, seed=1)
    assert text[0] == "<" and text[-1] == ">" and finish == "stop"
    assert isinstance(json.loads(output(server, structured_outputs={"json": {"type": "boolean"}})[0]), bool)


@pytest.mark.parametrize(
    ("kind", "source"),
    [("regex", "[a-"), ("grammar", "start: nowhere"), ("json", {"type": "strin"}), ("json", {"$ref": "#/nowhere"})],
)
def test_a_grammar_that_does_not_compile_is_a_400_that_says_why(server: Server, kind: str, source: Any) -> None:
    response = post(server, structured_outputs={kind: source})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == f"structured_outputs.{kind}"
    assert "\n" not in error["message"] and len(error["message"]) > len(f"structured_outputs.{kind}: ")


def test_streams_without_a_grammar_give_the_same_beside_those_with_one(server: Server) -> None:
    plain = {"seed": 5, "temperature": 1.0, "max_tokens": 100, "ignore_eos": True}
    alone = output(server, **plain)
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(output, server, seed=i, temperature=1.0, **AS_PERSON) for i in range(7)]
        assert pool.submit(output, server, **plain).result() == alone
        for other in others:
            jsonschema.validate(json.loads(other.result()[0]), PERSON)


@pytest.mark.slow
def test_when_the_grammar_process_dies_another_takes_its_place_and_its_requests_go_on(server: Server) -> None:
    endless = {"structured_outputs": {"regex": "[a-z]{5000}"}, "max_tokens": 1500, "seed": 8}
    undisturbed = output(server, **endless)
    plain = {"seed": 6, "max_tokens": 1000, "ignore_eos": True}
    with ThreadPoolExecutor(2) as pool:
        constrained, free = pool.submit(post, server, **endless), pool.submit(post, server, **plain)
        running = 'albireo:num_requests_running{engine="0",model_name="albireo-demo"} 2.0'
        assert eventually(lambda: running in httpx.get(server.url + "/metrics").text)
        os.kill(server.children()["albireo-grammar-0"], signal.SIGKILL)
        choice = constrained.result().json()["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == undisturbed
        assert free.result().json()["usage"]["completion_tokens"] == 1000
    assert eventually(lambda: post(server, **AS_PERSON).status_code == 200)
    assert any("albireo-" not in line and "grammar-0" in line and "SIGKILL" in line for line in server.lines)


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_grammar_process_that_dies_again_and_again_is_left_alone_for_a_minute() -> None:
    with Server("--kv-cache-bytes", "64M") as server:
        for number in range(1, GRAMMAR_RESTARTS_PER_MINUTE + 2):
            assert eventually(lambda: post(server, **AS_PERSON).status_code == 200)
            os.kill(server.children()["albireo-grammar-0"], signal.SIGKILL)
            assert eventually(lambda n=number: sum("SIGKILL" in line for line in server.lines) == n)
        assert "albireo-grammar-0" not in server.children()
        refused = post(server, **AS_PERSON)
        assert refused.status_code == 503 and "has died" in refused.json()["error"]["message"]
        assert post(server).status_code == 200
        assert eventually(lambda: post(server, **AS_PERSON).status_code == 200, timeout_s=90)
