"""The sampling fields on their whole way: from JSON to what the coordinator hears."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import tokens_reply
from frontend_server import FrontendServer
from tokenizers import Tokenizer

from albireo.messages import SamplingParams

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hello"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
}


@pytest.fixture(scope="module")
def server(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontendServer]:
    with FrontendServer(tmp_path_factory.mktemp("run"), tokenizer_path, tokens_reply([74], eos=2)) as server:
        yield server


def sampling(server: FrontendServer, path: str, **fields: Any) -> SamplingParams:
    response = httpx.post(server.url + path, json=BODIES[path] | {"max_tokens": 8, "seed": 1} | fields)
    assert response.status_code == 200, response.text
    return server.coordinator.submits[-1].sampling


@pytest.mark.parametrize("path", BODIES)
def test_every_field_reaches_the_coordinator(server: FrontendServer, path: str, tokenizer: Tokenizer) -> None:
    got = sampling(
        server,
        path,
        min_tokens=8,
        presence_penalty=0.5,
        frequency_penalty=-2,
        repetition_penalty=1000,
        logit_bias={"401": -100, "0": 0.5},
        bad_words=["you", "Hello"],
        prompt_logprobs=20,
    )
    words = ("you", " you", "Hello", " Hello")
    bad_words = {tuple(tokenizer.encode(word).ids) for word in words}
    assert set(got.bad_words) <= bad_words
    assert {ids for ids in bad_words if ids[0] != tokenizer.token_to_id("Ġ")} <= set(got.bad_words)
    assert got == SamplingParams(
        max_tokens=8,
        seed=1,
        min_tokens=8,
        presence_penalty=0.5,
        frequency_penalty=-2.0,
        repetition_penalty=1000.0,
        logit_bias=((401, -100.0), (0, 0.5)),
        bad_words=got.bad_words,
        prompt_logprobs=20,
    )


@pytest.mark.parametrize("path", BODIES)
def test_null_and_empty_ask_for_nothing(server: FrontendServer, path: str) -> None:
    names = (
        "min_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "bad_words",
        "prompt_logprobs", "logprobs", "echo",
    )  # fmt: skip
    nothing = SamplingParams(max_tokens=8, seed=1)
    assert sampling(server, path, **dict.fromkeys(names)) == nothing
    assert sampling(server, path, logit_bias={}, bad_words=[], min_tokens=0, repetition_penalty=1) == nothing
