"""The same answers whatever the run-ahead, the number of ranks, and whether they are streamed."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from checkpoints import write_checkpoint
from server import Server
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PROMPT = "The quick brown fox jumps over the lazy dog, and"
SAMPLED: dict[str, Any] = {"temperature": 0.8, "seed": 11}
GREEDY: dict[str, Any] = {"temperature": 0}
PENALTIES: dict[str, Any] = {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.2}

REQUESTS: list[dict[str, Any]] = [
    fields | how
    for how in (GREEDY, SAMPLED)
    for fields in (
        {"logprobs": 3},
        {"echo": True, "logprobs": 2, "max_tokens": 8},
        {"n": 4, "logprobs": 0},
        {"n": 4, "echo": True, "logprobs": 1, "max_tokens": 6},
        {"stop": ["e", "qu"], "ignore_eos": True},
        {"stop": ["t1"], "include_stop_str_in_output": True, "ignore_eos": True},
        PENALTIES | {"logprobs": 1},
        PENALTIES | {"n": 2, "min_tokens": 10, "logit_bias": {"40": 3, "300": -100}},
    )
]
LOGPROB_TOLERANCE = 1e-4
"""Two ranks add up in another order: float32's last bits differ. One rank's logprobs are the same to the last bit."""


def choices(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "text": choice["text"],
            "tokens": (choice["logprobs"] or {}).get("tokens"),
            "logprobs": (choice["logprobs"] or {}).get("token_logprobs"),
            "top": [set(top or ()) for top in (choice["logprobs"] or {}).get("top_logprobs") or ()],
            "ids": choice["token_ids"],
            "end": (choice["finish_reason"], choice["stop_reason"]),
        }
        for choice in answer["choices"]
    ]


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], tolerance: float) -> None:
    """Texts, tokens, ends, and logprobs within `tolerance`."""

    def without_values(answer: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [choice | {"logprobs": [value is None for value in choice["logprobs"] or ()]} for choice in answer]

    assert without_values(ours) == without_values(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for value, expected in zip(one["logprobs"] or (), other["logprobs"] or (), strict=True):
            assert value is None or abs(value - expected) <= tolerance


def ask(server: Server, path: Path, fields: dict[str, Any], stream: bool) -> list[dict[str, Any]]:
    """The response's choices; those of a stream put together from its chunks."""
    body = {"model": str(path), "prompt": PROMPT, "max_tokens": 24, "return_token_ids": True, "stream": stream} | fields
    if not stream:
        return choices(server.post("/v1/completions", body))
    whole: dict[int, dict[str, Any]] = {}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for piece in json.loads(line[6:])["choices"]:
                    add(whole.setdefault(piece["index"], {}), piece)
    return choices({"choices": [whole[index] for index in sorted(whole)]})


def add(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    """A chunk's part to what came before."""
    choice["text"] = choice.get("text", "") + piece["text"]
    choice["token_ids"] = choice.get("token_ids", []) + piece["token_ids"]
    choice["finish_reason"], choice["stop_reason"] = piece["finish_reason"], piece.get("stop_reason")
    before = choice.get("logprobs") or {}
    if (news := piece["logprobs"]) is not None:
        keys = ("tokens", "token_logprobs", "top_logprobs")
        choice["logprobs"] = {key: before.get(key, []) + (news[key] or []) for key in keys}
    else:
        choice["logprobs"] = before or None


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("same") / "qwen3", "qwen3")


def serve(path: Path, run_ahead: int, size: int) -> Server:
    return Server(
        "--model", str(path), "-tp", str(size), "--run-ahead", str(run_ahead), "--cpu-threads", "2",
        "--kv-cache-bytes", "32M", "--max-model-len", "256",
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(path: Path) -> list[list[dict[str, Any]]]:
    """Of one rank that plans a step when the one before is confirmed, unstreamed."""
    with serve(path, 0, 1) as server:
        return [ask(server, path, fields, stream=False) for fields in REQUESTS]


def test_the_requests_show_what_they_are_for(expected: list[list[dict[str, Any]]]) -> None:
    ends = [choice["end"] for answer in expected for choice in answer]
    assert {"stop", "length"} <= {reason for reason, _ in ends}
    assert {"e", "qu"} & {stop for _, stop in ends}, "no stop string ended anything"
    for fields, answer in zip(REQUESTS, expected, strict=True):
        assert len(answer) == fields.get("n", 1)
        assert len({choice["text"] for choice in answer}) == (len(answer) if "seed" in fields else 1)
        assert all(choice["text"].startswith(PROMPT) == bool(fields.get("echo")) for choice in answer)
    plain, penalised = expected[0][0]["ids"], expected[6][0]["ids"]
    assert plain != penalised, "penalties changed nothing"


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("run_ahead", [0, 1, 2, 4])
def test_answers_are_the_same_streamed_and_not(
    path: Path, expected: list[list[dict[str, Any]]], run_ahead: int, size: int
) -> None:
    with serve(path, run_ahead, size) as server:
        for fields, answer in zip(REQUESTS, expected, strict=True):
            tolerance = 0 if size == 1 else LOGPROB_TOLERANCE
            assert_same(ask(server, path, fields, stream=False), answer, tolerance)
            assert_same(ask(server, path, fields, stream=True), answer, tolerance)


@torch.inference_mode()
def test_loglikelihoods_are_those_of_transformers(path: Path) -> None:
    """As lm-eval asks for them: token ids, echoed with their logprobs."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    with serve(path, 2, 1) as server:
        for length in (2, 17, 64, 200):
            ids = torch.randint(4, 512, (length,), generator=generator).tolist()
            body = {"prompt": ids, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
            scores = server.post("/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
            reference = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            theirs = reference[torch.arange(length - 1), ids[1:]]
            torch.testing.assert_close(torch.tensor(scores[1:length]), theirs, atol=1e-3, rtol=0)
            assert abs(sum(scores[1:length]) - float(theirs.sum())) < 1e-3
