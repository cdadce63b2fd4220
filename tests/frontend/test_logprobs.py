"""Log-probabilities over HTTP: their exact shapes, streamed and not, through stop strings, echo and preemptions.

`fakes.logprob_records` says what the fake model gives: the token at position p has rank 1 + p % 3, rank r has the
log-probability -r / 4, and the token of rank r is 300 + r unless it is the one in question.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tokenizer_files
from fakes import logprob_records, tokens_reply
from frontend_server import MODEL, FrontendServer
from tokenizers import Tokenizer

from albireo.frontend import respond
from albireo.frontend.detokenizer import DetokenizerFactory
from albireo.frontend.logprobs import TokenNames, chat_logprobs, scores
from albireo.frontend.token_scores import TokenScores
from albireo.messages import Finish
from albireo.shm.layout import LOGPROB

TEXT = "Hello 😀 you"
MESSAGES: Any = [{"role": "user", "content": "Hello"}]
PROMPT = [74, 75, 76]


@pytest.fixture(scope="module")
def ids(tokenizer: Tokenizer) -> list[int]:
    return list(tokenizer.encode(TEXT).ids)


@pytest.fixture(scope="module")
def server(tokenizer_path: Path, ids: list[int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontendServer]:
    with FrontendServer(tmp_path_factory.mktemp("run"), tokenizer_path, tokens_reply(ids, eos=2)) as server:
        yield server


@pytest.fixture
def client(server: FrontendServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(server: FrontendServer, **fields: Any) -> Any:
    """The first choice of `/v1/completions`; a stream's is put together, with its chunks under `chunks`."""
    return post(server, "/v1/completions", {"prompt": PROMPT, "max_tokens": 50} | fields, "text")


def chat(server: FrontendServer, **fields: Any) -> Any:
    return post(server, "/v1/chat/completions", {"messages": MESSAGES} | fields, "content")


def post(server: FrontendServer, path: str, body: dict[str, Any], text: str) -> Any:
    response = httpx.post(server.url + path, json=body)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        whole = response.json()
        return whole["choices"][0] | {"whole": whole}
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert data.pop() == "[DONE]"
    chunks = [json.loads(each)["choices"][0] for each in data]
    parts: dict[str, Any] = {}
    for chunk in chunks:
        for key, values in (chunk["logprobs"] or {}).items():
            parts[key] = None if values is None else parts.get(key, []) + values
    shown = "".join(chunk.get("delta", chunk)[text] for chunk in chunks)
    return {"text": shown, "logprobs": parts, "finish_reason": chunks[-1]["finish_reason"], "chunks": chunks}


def texts(tokenizer: Tokenizer, token_ids: list[int]) -> list[str]:
    return [tokenizer.decode([id_], skip_special_tokens=False) for id_ in token_ids]


def completion_logprobs(
    tokenizer: Tokenizer, token_ids: list[int], offsets: list[int], position: int, num_top: int
) -> dict[str, Any]:
    """What the fake model's scores of these tokens look like, the first of them at `position`."""
    ranks = [1 + (position + index) % 3 for index in range(len(token_ids))]
    top = []
    for id_, rank in zip(token_ids, ranks, strict=True):
        names: dict[str, float] = {}
        for r in [*range(1, num_top + 1), rank]:
            names.setdefault(texts(tokenizer, [id_ if r == rank else 300 + r])[0], -r / 4)
        top.append(names)
    return {
        "tokens": texts(tokenizer, token_ids),
        "token_logprobs": [-rank / 4 for rank in ranks],
        "top_logprobs": top,
        "text_offset": offsets,
    }


def offsets_of(tokenizer: Tokenizer, token_ids: list[int], begin: int = 0) -> list[int]:
    """Characters that are whole before each token."""
    return [begin + len(tokenizer.decode(token_ids[:n]).rstrip("\ufffd")) for n in range(len(token_ids))]


def shown_bytes(content: list[Any]) -> bytes:
    return b"".join(bytes(entry["bytes"]) for entry in content)


def is_utf8(data: bytes) -> bool:
    return data.decode(errors="replace").encode() == data


@pytest.mark.parametrize("num_top", [0, 1, 2, 20])
@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_s_logprobs(
    server: FrontendServer, tokenizer: Tokenizer, ids: list[int], num_top: int, stream: bool
) -> None:
    choice = complete(server, logprobs=num_top, stream=stream)
    shown = [*ids, 2]
    assert choice["text"] == TEXT
    offsets = offsets_of(tokenizer, shown)
    assert choice["logprobs"] == completion_logprobs(tokenizer, shown, offsets, len(PROMPT), num_top)


def test_a_completion_s_logprobs_in_so_many_words(tokenizer_path: Path, run_dir: Path, tokenizer: Tokenizer) -> None:
    first, second = texts(tokenizer, [301, 302])
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74, 75], Finish.LENGTH)) as server:
        assert complete(server, logprobs=2)["logprobs"] == {
            "tokens": ["h", "i"],
            "token_logprobs": [-0.25, -0.5],
            "top_logprobs": [{"h": -0.25, second: -0.5}, {first: -0.25, "i": -0.5}],
            "text_offset": [0, 1],
        }


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_s_logprobs(server: FrontendServer, tokenizer: Tokenizer, ids: list[int], stream: bool) -> None:
    choice = chat(server, logprobs=True, top_logprobs=2, stream=stream)
    logprobs = choice["logprobs"]
    assert logprobs["refusal"] is None
    assert [entry["token"] for entry in logprobs["content"]] == texts(tokenizer, [*ids, 2])
    assert shown_bytes(logprobs["content"]) == f"{TEXT}<|im_end|>".encode()
    prompt = np.frombuffer(server.coordinator.submits[-1].prompt_token_ids, "<i4").size
    ranks = [1 + (prompt + index) % 3 for index in range(len(ids) + 1)]
    assert [entry["logprob"] for entry in logprobs["content"]] == [-rank / 4 for rank in ranks]
    first, rank = texts(tokenizer, [ids[0]])[0], ranks[0]
    likely = [first if r == rank else texts(tokenizer, [300 + r])[0] for r in (1, 2)]
    assert logprobs["content"][0] == {
        "token": first,
        "logprob": -rank / 4,
        "bytes": list(first.encode()),
        "top_logprobs": [
            {"token": token, "logprob": -r / 4, "bytes": list(token.encode())} for r, token in enumerate(likely, 1)
        ],
    }


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_s_logprobs_without_alternatives(server: FrontendServer, ids: list[int], stream: bool) -> None:
    content = chat(server, logprobs=True, stream=stream)["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in content] == [[]] * (len(ids) + 1)


@pytest.mark.parametrize("fields", [{}, {"logprobs": None}, {"echo": True}])
def test_nobody_else_gets_logprobs(server: FrontendServer, fields: dict[str, Any]) -> None:
    assert complete(server, **fields)["logprobs"] is None
    assert all(chunk["logprobs"] is None for chunk in complete(server, stream=True, **fields)["chunks"])
    sampling = server.coordinator.submits[-1].sampling
    assert (sampling.logprobs, sampling.prompt_logprobs) == (-1, -1)
    assert chat(server, logprobs=False, top_logprobs=0)["logprobs"] is None


def test_half_characters_have_their_own_bytes(server: FrontendServer, tokenizer: Tokenizer, ids: list[int]) -> None:
    content = chat(server, logprobs=True)["logprobs"]["content"]
    halves = [entry for entry in content if not is_utf8(bytes(entry["bytes"]))]
    assert len(halves) > 1, "the emoji is several tokens"
    assert shown_bytes(halves).strip() == "😀".encode()
    assert all("\ufffd" in entry["token"] for entry in halves)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_tokens_of_a_stop_string_keep_their_entries(
    server: FrontendServer, tokenizer: Tokenizer, ids: list[int], stream: bool, include: bool
) -> None:
    choice = complete(server, logprobs=1, stop=" 😀", stream=stream, include_stop_str_in_output=include)
    assert choice["text"] == ("Hello 😀" if include else "Hello")
    num_tokens = next(n for n in range(len(ids)) if "😀" in tokenizer.decode(ids[:n]))
    shown = ids[:num_tokens]
    assert choice["finish_reason"] == "stop"
    offsets = offsets_of(tokenizer, shown)
    assert choice["logprobs"] == completion_logprobs(tokenizer, shown, offsets, len(PROMPT), 1)


@pytest.mark.parametrize("include", [False, True])
def test_no_entry_is_lost_when_text_is_held_back_to_the_end(
    server: FrontendServer, ids: list[int], include: bool
) -> None:
    whole = complete(server, logprobs=1, stop="you and more")
    parts = complete(server, logprobs=1, stop="you and more", stream=True)
    assert parts["text"] == whole["text"] == TEXT
    assert parts["logprobs"] == whole["logprobs"]
    assert len(whole["logprobs"]["tokens"]) == len(ids) + 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["Hello 😀", [74, 1, 75]])
def test_echo_puts_the_prompt_first(server: FrontendServer, stream: bool, prompt: Any) -> None:
    text = prompt if isinstance(prompt, str) else "h<|im_start|>i"
    choice = complete(server, prompt=prompt, echo=True, stream=stream)
    assert choice["text"] == text + TEXT
    if stream:
        assert choice["chunks"][0]["text"].startswith(text)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["Hello 😀 world", [74, 75, 76]])
def test_echo_with_logprobs_scores_the_prompt(
    server: FrontendServer, tokenizer: Tokenizer, ids: list[int], stream: bool, prompt: Any
) -> None:
    choice = complete(server, prompt=prompt, echo=True, logprobs=1, stream=stream)
    prompt_ids = tokenizer.encode(prompt).ids if isinstance(prompt, str) else prompt
    text = tokenizer.decode(prompt_ids)
    assert choice["text"] == text + TEXT
    shown = [*prompt_ids, *ids, 2]
    offsets = offsets_of(tokenizer, prompt_ids) + offsets_of(tokenizer, [*ids, 2], len(text))
    expected = completion_logprobs(tokenizer, shown, offsets, 0, 1)
    expected["token_logprobs"][0] = expected["top_logprobs"][0] = None
    assert choice["logprobs"] == expected
    assert server.coordinator.submits[-1].sampling.prompt_logprobs == 1


@pytest.mark.parametrize(
    ("stream", "fields"), [(False, {}), (True, {}), (False, {"n": 2}), (True, {"stop": "H", "ignore_eos": True})]
)
def test_without_a_token_to_generate_an_echo_is_the_prompt_and_its_scores(
    server: FrontendServer, stream: bool, fields: dict[str, Any]
) -> None:
    asked = {"prompt": PROMPT, "echo": True, "logprobs": 1, "return_token_ids": True, "stream": stream} | fields
    more = complete(server, **asked, max_tokens=1)
    alone = complete(server, **asked, max_tokens=0)
    assert alone["text"] == "hij"
    assert alone["finish_reason"] == "length"
    assert alone["logprobs"] == {name: values[:3] for name, values in more["logprobs"].items()}
    if stream:
        assert [chunk["token_ids"] for chunk in alone["chunks"]] == [[]]
        return
    assert alone["token_ids"] == []
    assert [choice["text"] for choice in alone["whole"]["choices"]] == ["hij"] * (fields.get("n") or 1)
    counts = alone["whole"]["usage"]
    assert (counts["prompt_tokens"], counts["completion_tokens"], counts["total_tokens"]) == (3, 0, 3)


def test_several_prompts_are_echoed_each_with_its_own(server: FrontendServer) -> None:
    whole = complete(server, prompt=["one", "two more"], echo=True, logprobs=0)["whole"]
    for choice, text in zip(whole["choices"], ["one", "two more"], strict=True):
        logprobs = choice["logprobs"]
        assert choice["text"] == text + TEXT
        assert "".join(logprobs["tokens"]).startswith(text)
        assert logprobs["token_logprobs"][0] is None
        assert None not in logprobs["token_logprobs"][1:]


def test_prompt_logprobs_of_a_completion(server: FrontendServer, tokenizer: Tokenizer) -> None:
    whole = complete(server, prompt=[74, 75, 76], prompt_logprobs=1)
    likely = {"logprob": -0.25, "rank": 1, "decoded_token": tokenizer.decode([301])}
    assert whole["prompt_logprobs"] == [
        None,
        {"75": {"logprob": -0.5, "rank": 2, "decoded_token": "i"}, "301": likely},
        {"76": {"logprob": -0.75, "rank": 3, "decoded_token": "j"}, "301": likely},
    ]
    assert whole["logprobs"] is None
    assert "prompt_logprobs" not in complete(server)


def test_prompt_logprobs_of_a_chat_are_beside_its_choices(server: FrontendServer, tokenizer: Tokenizer) -> None:
    whole = chat(server, prompt_logprobs=0)["whole"]
    prompt = np.frombuffer(server.coordinator.submits[-1].prompt_token_ids, "<i4").tolist()
    assert whole["prompt_logprobs"][0] is None
    for position, (id_, entries) in enumerate(zip(prompt[1:], whole["prompt_logprobs"][1:], strict=True), 1):
        rank, text = 1 + position % 3, tokenizer.decode([id_], skip_special_tokens=False)
        assert entries == {str(id_): {"logprob": -rank / 4, "rank": rank, "decoded_token": text}}


def test_echo_and_prompt_logprobs_each_have_their_own_number(server: FrontendServer) -> None:
    choice = complete(server, echo=True, logprobs=1, prompt_logprobs=3, max_tokens=1)
    assert server.coordinator.submits[-1].sampling.prompt_logprobs == 3
    assert [len(entries) for entries in choice["prompt_logprobs"][1:]] == [3, 3]
    assert [len(top) for top in choice["logprobs"]["top_logprobs"][1:]] == [2, 2, 1]


def test_a_prompt_s_logprobs_come_in_parts_and_again_after_a_preemption(
    tokenizer_path: Path, run_dir: Path, server: FrontendServer
) -> None:
    prompt = list(range(60, 80))
    once = complete(server, prompt=prompt, prompt_logprobs=2, logprobs=2, echo=True)
    with FrontendServer(run_dir, tokenizer_path, server.coordinator.reply) as other:
        other.coordinator.prompt_parts = lambda length: [range(1, 9), range(1, 5), range(4, 15), range(15, length)]
        parts = complete(other, prompt=prompt, prompt_logprobs=2, logprobs=2, echo=True)
    for field in ("logprobs", "prompt_logprobs", "text"):
        assert parts[field] == once[field]


@pytest.mark.parametrize("stream", [False, True])
def test_usage_counts_no_echoed_token_twice(server: FrontendServer, ids: list[int], stream: bool) -> None:
    body = {"prompt": PROMPT, "max_tokens": 50, "echo": True, "logprobs": 1, "stream": stream}
    options = {"stream_options": {"include_usage": True}} if stream else {}
    response = httpx.post(server.url + "/v1/completions", json=body | options)
    last = json.loads(response.text.split("data: ")[-2]) if stream else response.json()
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (len(PROMPT), len(ids) + 1)


def test_the_openai_client_reads_completions(client: openai.OpenAI, ids: list[int]) -> None:
    answer = client.completions.create(model=MODEL, prompt="hi", max_tokens=50, logprobs=2, echo=True)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs)
    stream = client.completions.create(model=MODEL, prompt="hi", max_tokens=50, logprobs=2, echo=True, stream=True)
    tokens: list[str] = []
    for chunk in stream:
        found = chunk.choices[0].logprobs
        tokens += (found.tokens or []) if found else []
    assert tokens == logprobs.tokens


def test_the_openai_client_reads_chats(client: openai.OpenAI, ids: list[int]) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == len(ids) + 1
    assert all(len(entry.top_logprobs) == 3 for entry in logprobs.content)
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=3, stream=True)
    content: list[Any] = []
    for chunk in stream:
        found = chunk.choices[0].logprobs
        content += (found.content or []) if found else []
    assert content == logprobs.content


def test_an_engine_s_abort_has_the_entries_of_its_tokens(tokenizer_path: Path, run_dir: Path) -> None:
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74, -1], Finish.ABORT)) as server:
        for stream in (False, True):
            choice = complete(server, logprobs=0, stream=stream)
            assert (choice["finish_reason"], choice["logprobs"]["tokens"]) == ("abort", ["h"])


def test_an_impossible_token_has_the_lowest_logprob_that_json_can_carry(tokenizer: Tokenizer) -> None:
    records = logprob_records([5], [74], 2)
    records["logprob"] = records["top_logprobs"][0, 1] = -np.inf
    assert next(scores(records, 2))[1] == -9999.0
    entry = chat_logprobs(records, 2, TokenNames(DetokenizerFactory(tokenizer)))["content"][0]
    assert (entry["logprob"], entry["top_logprobs"][1]["logprob"]) == (-9999.0, -9999.0)


def test_fewer_alternatives_than_asked_are_no_padding() -> None:
    records = logprob_records([5], [74], 2)
    assert next(scores(records, 20))[3:] == ([301, 302], [-0.25, -0.5])


def test_sentencepiece_tokens_keep_their_space_and_offsets_are_of_the_text(tmp_path: Path, run_dir: Path) -> None:
    backend = tokenizer_files.sentencepiece()
    path = tokenizer_files.write(tmp_path, backend)
    prompt = "Hello world"
    with FrontendServer(run_dir, path, tokens_reply(backend.encode(" two", add_special_tokens=False).ids)) as server:
        choice = complete(server, prompt=prompt, echo=True, logprobs=0, max_tokens=4)
        logprobs = choice["logprobs"]
        assert logprobs["tokens"][0] == "<s>"
        assert choice["text"].startswith(prompt)
        for token, offset in zip(logprobs["tokens"][2:6], logprobs["text_offset"][2:6], strict=True):
            assert choice["text"][offset:].startswith(token)


def test_scores_behind_a_stop_string_stay_behind() -> None:
    kept = TokenScores(2, scores_prompt=False)
    kept.add(logprob_records([1, 2, 3], [9, 10, 11], 0))
    kept.add(logprob_records([4], [12], 0))
    assert kept.take(1)["token"].tolist() == [10]
    assert kept.take(1).size == 0
    assert kept.take(3)["token"].tolist() == [11, 12]
    assert kept.take(3).dtype == LOGPROB
    assert kept.prompt is None


def test_a_long_prompt_s_scores_are_written_off_the_loop_and_the_same(server: FrontendServer) -> None:
    prompt = [60 + index % 100 for index in range(respond.MAX_INLINE_SCORED_TOKENS + 1)]
    whole = complete(server, prompt=prompt, echo=True, logprobs=2)
    parts = complete(server, prompt=prompt, echo=True, logprobs=2, stream=True)
    assert len(whole["logprobs"]["tokens"]) > len(prompt)
    assert (whole["text"], whole["logprobs"]) == (parts["text"], parts["logprobs"])
