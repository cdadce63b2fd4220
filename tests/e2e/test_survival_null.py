"""What an answer has beside its text goes on over deaths too: samples, scores, token ids, the prompt, usage."""

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from server import Server, eventually

pytestmark = pytest.mark.e2e
PROMPT = "def f(x):\n    return x + 1\n\n" * 20
"""Some ten steps of 64 tokens."""
COMMON: dict[str, Any] = {"ignore_eos": True, "seed": 1, "max_tokens": 40, "n": 2}
REQUESTS: tuple[dict[str, Any], ...] = (
    {"prompt": PROMPT, "echo": True, "logprobs": 2, "stream": True, "return_token_ids": True,
     "stream_options": {"include_usage": True}},
    {"prompt": [PROMPT + "#", "x"], "prompt_logprobs": 1, "logprobs": 0},
    {"prompt": "x", "stop": ["\0", "~~"], "stream": True, "stream_options": {"include_usage": True}},
)  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = ("--null-step-ms", "30", "--max-num-batched-tokens", "64", "--max-num-seqs", "32")
    with Server("--device", "null", *flags) as server:
        yield server


@pytest.fixture(scope="module")
def expected(server: Server) -> list[Any]:
    return all_answers(server)


def all_answers(server: Server) -> list[Any]:
    with ThreadPoolExecutor(len(REQUESTS)) as pool:
        return list(pool.map(lambda request: answer(server, request), REQUESTS))


def answer(server: Server, request: dict[str, Any]) -> Any:
    """The choices and the usage, however the answer was cut into pieces."""
    if not request.get("stream"):
        body = server.post("/v1/completions", COMMON | request)
        return body["choices"], counts(body["usage"])
    sent = json.dumps(COMMON | request).encode()
    asked = urllib.request.Request(f"{server.url}/v1/completions", sent, {"Content-Type": "application/json"})
    choices: dict[int, dict[str, list[Any]]] = {}
    usage = None
    with urllib.request.urlopen(asked) as response:
        for line in response:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                usage = event["usage"] or usage
                for choice in event["choices"]:
                    add(choices.setdefault(choice["index"], {}), choice)
    return choices, counts(usage)


def add(whole: dict[str, list[Any]], piece: dict[str, Any]) -> None:
    for name, value in (piece | (piece["logprobs"] or {})).items():
        if isinstance(value, str | list):
            whole.setdefault(name, []).extend(value)


def counts(usage: Any) -> Any:
    """Without what the prefix cache had."""
    return usage["prompt_tokens"], usage["completion_tokens"]


@pytest.mark.parametrize("num_steps", [3, 25])
@pytest.mark.parametrize("victim", ["coordinator-0", "worker-0"])
def test_an_answer_is_the_undisturbed_one(server: Server, expected: list[Any], victim: str, num_steps: int) -> None:
    """Killed among the prompts, and among the outputs."""
    before = server.metric("albireo:engine_steps_total")
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(all_answers, server)
        assert eventually(lambda: server.metric("albireo:engine_steps_total") >= before + num_steps)
        os.kill(server.children()[f"albireo-{victim}"], signal.SIGKILL)
        assert answers.result() == expected
    assert eventually(lambda: f"albireo-{victim}" in server.children())
