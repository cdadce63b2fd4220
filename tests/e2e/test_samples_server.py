"""`n` samples of one prompt: each what it would be alone, together a fraction of the work."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from server import Server

PROMPT = "The module provides a function that returns the number of items in a list, and " * 3
FIELDS: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0.9, "seed": 40}


@pytest.fixture(scope="module", params=["--enable-prefix-caching", "--no-enable-prefix-caching"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server("--kv-cache-bytes", "64M", "--dtype", "float32", request.param) as server:
        yield server


def complete(server: Server, **fields: Any) -> dict[str, Any]:
    body = {"model": "albireo-demo"} | FIELDS | fields
    response = httpx.post(server.url + "/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def stream(server: Server, **fields: Any) -> dict[int, dict[str, Any]]:
    """Choices put together from their chunks, by index."""
    body = {"model": "albireo-demo", "stream": True} | FIELDS | fields
    choices: dict[int, dict[str, Any]] = {}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            for piece in json.loads(line[6:])["choices"]:
                choice = choices.setdefault(piece["index"], {"text": "", "tokens": []})
                choice["text"] += piece["text"]
                choice["tokens"] += (piece["logprobs"] or {}).get("tokens", [])
                choice["finish_reason"] = piece["finish_reason"]
    return choices


def test_each_sample_is_what_it_would_be_with_its_own_seed(server: Server) -> None:
    together = complete(server, n=4)
    alone = [complete(server, seed=40 + i)["choices"][0]["text"] for i in range(4)]
    assert [choice["text"] for choice in together["choices"]] == alone
    assert [choice["index"] for choice in together["choices"]] == [0, 1, 2, 3]
    assert len(set(alone)) == 4
    usage = together["usage"]
    assert usage["prompt_tokens"] == complete(server)["usage"]["prompt_tokens"]
    assert usage["completion_tokens"] <= 4 * 24


def test_streamed_samples_are_the_same(server: Server) -> None:
    whole = complete(server, n=3, prompt=[PROMPT, "Once"])["choices"]
    streamed = stream(server, n=3, prompt=[PROMPT, "Once"])
    assert sorted(streamed) == list(range(6))
    for choice in whole:
        assert streamed[choice["index"]]["text"] == choice["text"]
        assert streamed[choice["index"]]["finish_reason"] == choice["finish_reason"]


def test_all_samples_echo_the_prompt_with_the_scores_of_the_first(server: Server) -> None:
    answer = complete(server, n=3, echo=True, logprobs=1)
    first, *others = [choice["logprobs"] for choice in answer["choices"]]
    num_prompt = answer["usage"]["prompt_tokens"]
    assert first["token_logprobs"][0] is None and None not in first["token_logprobs"][1:]
    for other in others:
        assert other["token_logprobs"][:num_prompt] == first["token_logprobs"][:num_prompt]
    streamed = stream(server, n=3, echo=True, logprobs=1)
    for choice in answer["choices"]:
        assert streamed[choice["index"]]["tokens"] == choice["logprobs"]["tokens"]
        assert choice["text"].startswith(PROMPT)
    alone = complete(server, n=3, echo=True, logprobs=1, max_tokens=0)
    assert alone["usage"]["completion_tokens"] == 0
    for choice, longer in zip(alone["choices"], answer["choices"], strict=True):
        assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
        scores = longer["logprobs"]["token_logprobs"][:num_prompt]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx([None, *scores[1:]], abs=1e-4)


def test_samples_share_the_prompt_s_blocks(server: Server) -> None:
    before = server.metric("albireo:prefix_cache_hits_total")
    num_prompt = complete(server, n=4, prompt=PROMPT + "x")["usage"]["prompt_tokens"]
    shared = (num_prompt - 1) // 16 * 16
    assert server.metric("albireo:prefix_cache_hits_total") - before >= 3 * shared > 0
