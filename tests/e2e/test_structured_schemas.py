"""Random JSON schemas at temperature 1 under run-ahead 2, beside streams without any: every output is valid."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema
import pytest
from server import Server

NUM_SCHEMAS = 200
MAX_TOKENS = 900


def random_schema(random_: random.Random, depth: int = 0) -> dict[str, Any]:  # noqa: PLR0911
    """Bounded in every direction, so that any output of it ends."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern"]
    if depth < 3:
        kinds += ["object", "object", "array", "anyOf", "tuple"]
    match random_.choice(kinds) if depth else random_.choice(["object", "array"]):
        case "string":
            return {"type": "string", "maxLength": random_.randint(0, 12)}
        case "integer":
            low = random_.randint(-1000, 1000)
            return {"type": "integer", "minimum": low, "maximum": low + random_.randint(0, 5000)}
        case "number":
            low = random_.randint(-100, 100)
            return {"type": "number", "minimum": low, "maximum": low + random_.randint(1, 500)}
        case "enum":
            return {
                "enum": [random_.choice(["a", "bé", 'q"', 1, True, None, -2.5]) for _ in range(random_.randint(1, 4))]
            }
        case "const":
            return {"const": random_.choice(["fixed", 7, False, {"k": [1]}])}
        case "pattern":
            return {"type": "string", "pattern": random_.choice([r"^[a-c]{2,5}$", r"^\d{3}-\d{2}$", r"^(x|yz)+!$"])} | {
                "maxLength": 12
            }
        case "object":
            return random_object(random_, depth)
        case "array":
            low = random_.randint(0, 2)
            return {
                "type": "array", "items": random_schema(random_, depth + 1), "minItems": low,
                "maxItems": low + random_.randint(0, 3),
            }  # fmt: skip
        case "tuple":
            items = [random_schema(random_, depth + 1) for _ in range(random_.randint(1, 3))]
            return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
        case "anyOf":
            return {"anyOf": [random_schema(random_, depth + 1) for _ in range(random_.randint(1, 3))]}
        case kind:
            return {"type": kind}


def random_object(random_: random.Random, depth: int) -> dict[str, Any]:
    names = random_.sample(["id", "name", "π", "a b", "nested", "x1", "list"], random_.randint(0, 4))
    return {
        "type": "object",
        "properties": {name: random_schema(random_, depth + 1) for name in names},
        "required": [name for name in names if random_.random() < 0.7],
        "additionalProperties": False,
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_outputs_of_random_schemas_are_valid() -> None:
    random_ = random.Random(27)
    schemas = [random_schema(random_) for _ in range(NUM_SCHEMAS)]
    outcomes: dict[str, int] = {}
    with Server("--kv-cache-bytes", "128M", "--run-ahead", "2") as server, httpx.Client(timeout=120) as client:

        def post(**fields: Any) -> httpx.Response:
            body = {"model": "albireo-demo", "prompt": "Once", "temperature": 1.0} | fields
            return client.post(server.url + "/v1/completions", json=body)

        def check(index: int) -> str:
            schema = schemas[index]
            response = post(max_tokens=MAX_TOKENS, seed=index, structured_outputs={"json": schema})
            assert response.status_code == 200, (schema, response.text)
            choice = response.json()["choices"][0]
            if choice["finish_reason"] == "stop":
                jsonschema.validate(json.loads(choice["text"]), schema)
            return str(choice["finish_reason"])

        plain = {"max_tokens": 200, "seed": 9, "ignore_eos": True}
        alone = post(**plain).json()["choices"][0]["text"]
        with ThreadPoolExecutor(12) as pool:
            beside = [pool.submit(post, **plain) for _ in range(4)]
            for finish in pool.map(check, range(NUM_SCHEMAS)):
                outcomes[finish] = outcomes.get(finish, 0) + 1
            assert {each.result().json()["choices"][0]["text"] for each in beside} == {alone}
    print(outcomes)
    assert sum(outcomes.values()) == NUM_SCHEMAS
    assert outcomes["stop"] >= 0.9 * NUM_SCHEMAS, outcomes
