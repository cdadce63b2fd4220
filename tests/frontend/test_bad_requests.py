"""Whatever a client gets wrong is its own status, names the field, and never reaches the engine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import tokens_reply
from frontend_server import MODEL, FrontendServer

from albireo import limits

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
GOOD: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"model": MODEL, "prompt": "Hello", "max_tokens": 4},
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
}


def nested_schema(depth: int) -> dict[str, Any]:
    """Two levels of text for each of data."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.fixture(scope="module")
def server(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontendServer]:
    with FrontendServer(tmp_path_factory.mktemp("run"), tokenizer_path, tokens_reply([74, 75], eos=2)) as server:
        yield server


@pytest.fixture(autouse=True)
def the_engine_hears_nothing(server: FrontendServer) -> Iterator[None]:
    heard = len(server.coordinator.submits)
    yield
    assert len(server.coordinator.submits) == heard


@pytest.fixture(scope="module", autouse=True)
def client() -> Iterator[httpx.Client]:
    global _client
    with httpx.Client() as _client:
        yield _client


_client: httpx.Client


def post(server: FrontendServer, path: str, body: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return _client.post(server.url + path, content=content, headers={"Content-Type": "application/json"})


def check(response: httpx.Response, status: int, field: str | None, *words: str) -> None:
    error = response.json()["error"]
    assert response.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == field
    for word in (*words, *([field] if field else [])):
        assert word in error["message"]


BOTH = [
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": -3}, "max_tokens", "at least"),
    ({"max_tokens": 1.5}, "max_tokens", "integer"),
    ({"max_tokens": "5"}, "max_tokens", "integer"),
    ({"max_tokens": True}, "max_tokens", "integer"),
    ({"max_tokens": 256}, "max_tokens", "at most"),
    ({"max_tokens": 10**30}, "max_tokens", "at most"),
    ({"temperature": -0.1}, "temperature", "at least 0"),
    ({"temperature": 2.1}, "temperature", "at most 2"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"temperature": [1]}, "temperature", "number"),
    ({"top_p": 0}, "top_p", "above 0"),
    ({"top_p": 1.01}, "top_p", "at most 1"),
    ({"top_k": -2}, "top_k", "at least -1"),
    ({"top_k": 2**31}, "top_k", "at most"),
    ({"min_p": 1.5}, "min_p", "at most 1"),
    ({"n": 129}, "n", "at most 128"),
    ({"n": 0}, "n", "at least 1"),
    ({"seed": 2**63}, "seed", "at most"),
    ({"seed": 0.5}, "seed", "integer"),
    ({"stop": ["a"] * 5}, "stop", "at most 4"),
    ({"stop": ""}, "stop", "at least 1"),
    ({"stop": ["ok", ""]}, "stop[1]", "at least 1"),
    ({"stop": "x" * 257}, "stop", "at most 256"),
    ({"stop": 5}, "stop", "string"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "at least 0"),
    ({"stop_token_ids": [5, 402]}, "stop_token_ids[1]", "402"),
    ({"stop_token_ids": list(range(16))}, "stop_token_ids", "at most 15"),
    ({"stop_token_ids": list(range(17))}, "stop_token_ids", "at most 16"),
    ({"stream": "yes"}, "stream", "true or false"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or false"),
    ({"stream_options": {"x": 1}, "stream": True}, "stream_options.x", "not a field"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
    ({"priority": 2**31}, "priority", "at most"),
    ({"cache_salt": ""}, "cache_salt", "at least 1"),
    ({"cache_salt": "x" * 257}, "cache_salt", "at most 256"),
    ({"user": "x" * 513}, "user", "at most 512"),
    ({"skip_special_tokens": 1}, "skip_special_tokens", "true or false"),
    ({"foo": 1}, "foo", "not a field"),
    ({"presence_penalty": 2.1}, "presence_penalty", "at most 2"),
    ({"presence_penalty": -2.1}, "presence_penalty", "at least -2"),
    ({"presence_penalty": False}, "presence_penalty", "number"),
    ({"frequency_penalty": 2.1}, "frequency_penalty", "at most 2"),
    ({"frequency_penalty": -2.1}, "frequency_penalty", "at least -2"),
    ({"frequency_penalty": "1"}, "frequency_penalty", "number"),
    ({"repetition_penalty": 0}, "repetition_penalty", "at least 0.001"),
    ({"repetition_penalty": 1001}, "repetition_penalty", "at most 1000"),
    ({"repetition_penalty": []}, "repetition_penalty", "number"),
    ({"logit_bias": {"402": 1}}, "logit_bias.402", "below the vocabulary size 402"),
    ({"logit_bias": {"-1": 1}}, "logit_bias.-1", "0 or more"),
    ({"logit_bias": {"5": 1, "05": 1}}, "logit_bias.05", "token id"),
    ({"logit_bias": {"five": 1}}, "logit_bias.five", "token id"),
    ({"logit_bias": {"": 1}}, "logit_bias.", "token id"),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias." + "9" * limits.MAX_ECHO_CHARS, "token id"),
    ({"logit_bias": {"\u0665": 1}}, "logit_bias.\u0665", "token id"),
    ({"logit_bias": {"5": 100.5}}, "logit_bias.5", "at most 100"),
    ({"logit_bias": {"5": -101}}, "logit_bias.5", "at least -100"),
    ({"logit_bias": {"5": "1"}}, "logit_bias[...]", "number"),
    ({"logit_bias": {"5": None}}, "logit_bias[...]", "number"),
    ({"logit_bias": [5]}, "logit_bias", "an object"),
    ({"logit_bias": {str(id_): 1 for id_ in range(1025)}}, "logit_bias", "at most 1024"),
    ({"min_tokens": -1}, "min_tokens", "at least 0"),
    ({"min_tokens": 5}, "min_tokens", "at most 4"),
    ({"min_tokens": 1.5}, "min_tokens", "integer"),
    ({"bad_words": "x"}, "bad_words", "a list"),
    ({"bad_words": [5]}, "bad_words[0]", "string"),
    ({"bad_words": ["ok", ""]}, "bad_words[1]", "at least 1"),
    ({"bad_words": ["ok", "  "]}, "bad_words[1]", "spaces"),
    ({"bad_words": ["x" * 257]}, "bad_words[0]", "at most 256"),
    ({"bad_words": ["ok", "qzxjqzxjqzxjqzxjqzxj"]}, "bad_words[1]", "at most 16"),
    ({"bad_words": ["x"] * 129}, "bad_words", "at most 128"),
    ({"bad_words": [f"t{i}" for i in range(65)]}, "bad_words", "spellings"),
    ({"bad_words": [f"qzxjqzxjqzx{i}" for i in range(90)]}, "bad_words", "at most 1024"),
    ({"prompt_logprobs": -1}, "prompt_logprobs", "at least 0"),
    ({"prompt_logprobs": 21}, "prompt_logprobs", "at most 20"),
    ({"prompt_logprobs": True}, "prompt_logprobs", "integer"),
    ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs", "stream"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "at least 1 entries"),
    ({"allowed_token_ids": [5, 10**6]}, "allowed_token_ids[1]", "must be below the vocabulary size"),
    ({"allowed_token_ids": [5], "min_tokens": 1}, "min_tokens", "does not go together with allowed_token_ids"),
    (
        {"allowed_token_ids": [5], "response_format": {"type": "json_object"}},
        "allowed_token_ids",
        "does not go together with response_format",
    ),
    ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
    ({"response_format": {"type": "text", "json_schema": {"name": "x"}}}, "response_format.json_schema", "needs"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
        "missing",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": [1]}}},
        "response_format.json_schema.schema",
        "an object",
    ),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice", "one kind"),
    ({"structured_outputs": {"regex": "a" * 5000}}, "structured_outputs.regex", "4096"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least 1"),
    ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice[0]", "at least 1"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "JSON schema"),
    ({"structured_outputs": {"json": {"enum": [1] * 10_001}}}, "structured_outputs.json", "10000 values"),
    ({"structured_outputs": {"json": nested_schema(17)}}, "structured_outputs.json", "32 levels"),
    (
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        "structured_outputs",
        "both",
    ),
    ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos", "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a"}, "min_tokens": 1}, "min_tokens", "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a"}, "bad_words": ["x"]}, "bad_words", "structured_outputs.regex"),
    ({"model": 5}, "model", "string"),
]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(("change", "field", "words"), BOTH, ids=lambda value: str(value)[:40])
def test_a_bad_value_is_a_400_that_names_the_field_and_the_bound(
    server: FrontendServer, path: str, change: dict[str, Any], field: str, words: str
) -> None:
    check(post(server, path, GOOD[path] | change), 400, field, words)


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": None}, "prompt", "missing"),
        ({"prompt": ["a", ""]}, "prompt[1]", "empty"),
        ({"prompt": [[1], []]}, "prompt[1]", "empty"),
        ({"prompt": [[]]}, "prompt", "empty"),
        ({"prompt": 5}, "prompt", "a string or a list"),
        ({"prompt": {"text": "x"}}, "prompt", "a string or a list"),
        ({"prompt": ["a", 1]}, "prompt", "mixture"),
        ({"prompt": ["a", [1]]}, "prompt", "mixture"),
        ({"prompt": [[1, "a"]]}, "prompt[0][1]", "integer"),
        ({"prompt": [1.5]}, "prompt[0]", "integer"),
        ({"prompt": [-1]}, "prompt[0]", "at least 0"),
        ({"prompt": [402]}, "prompt", "vocabulary of 402"),
        ({"prompt": [[1], [2**31 - 1]]}, "prompt[1]", "vocabulary"),
        ({"prompt": [2**31]}, "prompt[0]", "at most"),
        ({"prompt": "Hello " * 300}, "prompt", "tokens"),
        ({"prompt": "x" * 100_000}, "prompt", "characters"),
        ({"prompt": [5] * 256}, "prompt", "256 tokens"),
        ({"prompt": ["a"] * 1025}, "prompt", "at most 1024"),
        ({"prompt": [5] * 250, "max_tokens": 7}, "max_tokens", "at most 6"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"logprobs": 21}, "logprobs", "at most 20"),
        ({"logprobs": -1}, "logprobs", "at least 0"),
        ({"logprobs": True}, "logprobs", "integer"),
        ({"logprobs": "2"}, "logprobs", "integer"),
        ({"top_logprobs": 2}, "top_logprobs", "not a field"),
        ({"echo": 1}, "echo", "true or false"),
        ({"prompt": [[5] * 200] * 300, "prompt_logprobs": 20}, "prompt", "at most 262144"),
        ({"prompt": [[5] * 200] * 300, "logprobs": 20, "echo": True}, "prompt", "at most 262144"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"messages": []}, "messages", "not a field"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_prompt_is_a_400(server: FrontendServer, change: dict[str, Any], field: str, words: str) -> None:
    check(post(server, COMPLETIONS, GOOD[COMPLETIONS] | change), 400, field, words)


def user(**changes: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello", **changes}]}


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": None}, "messages", "a list"),
        ({"messages": "hi"}, "messages", "a list"),
        ({"messages": [5]}, "messages[0]", "an object"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing"),
        (user(role="wizard"), "messages[0].role", "system, developer, user, assistant"),
        (user(role="tool"), "messages[0].tool_call_id", "missing"),
        (user(role="function"), "messages[0].role", "use tool"),
        (user(role=5), "messages[0].role", "a string"),
        (user(content=5), "messages[0].content", "a string or a list"),
        (user(content=None), "messages[0].content", "missing"),
        (
            user(content=[{"type": "image_url", "image_url": {"url": "http://x"}}]),
            "messages[0].content[0].type",
            "text",
        ),
        (user(content=[{"type": "text"}]), "messages[0].content[0].text", "missing"),
        (user(content=[{"type": "text", "text": 5}]), "messages[0].content[0].text", "a string"),
        (user(tool_calls=[{"id": "1"}]), "messages[0].tool_calls[0].function", "missing"),
        (user(name="x" * 257), "messages[0].name", "at most 256"),
        (user(wat=1), "messages[0].wat", "not a field"),
        (user(content="Hello " * 300), "messages", "tokens"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tool_choice", "--enable-auto-tool-choice"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"top_logprobs": 5}, "top_logprobs", "needs logprobs"),
        ({"top_logprobs": 5, "logprobs": False}, "top_logprobs", "needs logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "at most 20"),
        ({"top_logprobs": -1, "logprobs": True}, "top_logprobs", "at least 0"),
        ({"top_logprobs": "5", "logprobs": True}, "top_logprobs", "integer"),
        ({"logprobs": 1}, "logprobs", "true or false"),
        ({"echo": True}, "echo", "not supported"),
        ({"chat_template": "{{ x }}"}, "chat_template", "not supported"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "template"),
        ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs.messages", "not a variable"),
        ({"chat_template_kwargs": {"a": [1]}}, "chat_template_kwargs[...]", "string"),
        ({"chat_template_kwargs": {str(i): 1 for i in range(33)}}, "chat_template_kwargs", "at most 32"),
        ({"metadata": {"a": 1}}, "metadata[...]", "a string"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
        ({"max_completion_tokens": 5}, "max_completion_tokens", "differ"),
        ({"max_completion_tokens": 1000, "max_tokens": None}, "max_completion_tokens", "at most"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "add_generation_prompt", "both"),
        ({"prompt": "x"}, "prompt", "not a field"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_chat_is_a_400(server: FrontendServer, change: dict[str, Any], field: str, words: str) -> None:
    check(post(server, CHAT, GOOD[CHAT] | change), 400, field, words)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (b"", None, "empty"),
        (b"{", None, "not valid JSON"),
        (b"[]", None, "an object"),
        (b"null", None, "an object"),
        (b'{"user": "x",}', None, "not valid JSON"),
        (b'{"temperature": NaN}', "temperature", "finite"),
        (b'{"top_p": Infinity}', "top_p", "finite"),
        (b'{"temperature": -Infinity}', "temperature", "finite"),
        (b'{"temperature": 1e999}', "temperature", "finite"),
        (b'{"user": "\xff"}', None, "UTF-8"),
        (b'{"suffix": "\xff"}', None, "UTF-8"),
        (b'{"\xff": 1}', None, "UTF-8"),
        (b'{"user": "\\ud800"}', None, "surrogate"),
        (b'{"user": "\\udc00x"}', None, "surrogate"),
        (b'{"user": "a", "user": "b"}', "user", "twice"),
        (b'{"user": "a", "\\u0075ser": "b"}', "user", "twice"),
        (b'{"logit_bias": {"1": 1, "1": 2}}', "1", "twice"),
        (b"[" * 100_000, None, "deeper"),
        (b'{"tools": ' + b"[" * 65 + b"]" * 65 + b"}", None, "deeper"),
        (b'{"a": ' * 100 + b"1" + b"}" * 100, None, "deeper"),
        (b'{"stop": [' + b'"a",' * 300_000 + b'"a"]}', None, "values"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_broken_body_is_a_400(server: FrontendServer, path: str, body: bytes, field: str | None, words: str) -> None:
    check(post(server, path, body), 400, field, words)


def test_random_bytes_never_make_a_500(server: FrontendServer) -> None:
    good = json.dumps(GOOD[CHAT]).encode()
    for position in range(0, len(good), 2):
        for byte in (b"", b'"', b"{", b"\xff", b"9"):
            response = post(server, CHAT, good[:position] + byte + good[position + 1 + len(byte) % 2 :])
            if response.status_code == 200:
                server.coordinator.submits.pop()
            assert response.status_code in (200, 400, 404)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_wrong_model_is_a_404(server: FrontendServer, path: str) -> None:
    check(post(server, path, GOOD[path] | {"model": "gpt-9"}), 404, "model", "gpt-9")


def test_a_wrong_route_is_a_404_and_a_wrong_method_a_405(server: FrontendServer) -> None:
    check(httpx.get(server.url + "/v1/nothing"), 404, None, "/v1/nothing")
    check(httpx.get(server.url + "/v1/completions/"), 404, None)
    check(httpx.get(server.url + "/v1/models/gpt-9"), 404, "model", "gpt-9")
    response = httpx.get(server.url + COMPLETIONS)
    check(response, 405, None, "GET")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_not_declared_as_json_is_a_415(server: FrontendServer, content_type: str) -> None:
    response = httpx.post(server.url + COMPLETIONS, content=b"{}", headers={"Content-Type": content_type})
    check(response, 415, None, "application/json")


def test_the_largest_body_is_read(server: FrontendServer) -> None:
    ids = "[" + "1," * ((limits.MAX_BODY_BYTES - 100) // 2) + "1]"
    response = post(server, COMPLETIONS, f'{{"model": "{MODEL}", "prompt": {ids}}}'.encode())
    check(response, 400, "prompt", "tokens")


def test_the_server_s_own_bound_on_logprobs_holds_for_every_field(tokenizer_path: Path, run_dir: Path) -> None:
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([5], eos=2), max_logprobs=3) as server:
        for path, fields, name in (
            (COMPLETIONS, {"logprobs": 4}, "logprobs"),
            (CHAT, {"logprobs": True, "top_logprobs": 4}, "top_logprobs"),
            (CHAT, {"prompt_logprobs": 4}, "prompt_logprobs"),
        ):
            check(post(server, path, GOOD[path] | fields), 400, name, "at most 3")
        assert post(server, COMPLETIONS, GOOD[COMPLETIONS] | {"logprobs": 3}).status_code == 200


def test_a_template_s_refusal_is_a_400_with_its_words(tokenizer_path: Path, run_dir: Path) -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([5]), chat_template=template) as server:
        check(post(server, CHAT, GOOD[CHAT]), 400, "messages", "roles must alternate")


def test_a_template_that_trips_over_the_messages_is_a_400_without_details(tokenizer_path: Path, run_dir: Path) -> None:
    template = "{{ messages[0].content + 5 }}"
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([5]), chat_template=template) as server:
        response = post(server, CHAT, GOOD[CHAT])
        check(response, 400, "messages", "cannot render")
        assert "int" not in response.text
