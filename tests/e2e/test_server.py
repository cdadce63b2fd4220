"""The official client against a real server on the bundled model."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from server import Server, eventually

pytestmark = pytest.mark.e2e
MODEL = "albireo-demo"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--kv-cache-bytes", "64M") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        yield client


@pytest.fixture(autouse=True)
def every_block_comes_back(server: Server) -> Iterator[None]:
    yield
    assert eventually(lambda: server.metric("albireo:kv_cache_usage_perc") == 0)
    assert server.metric("albireo:num_requests_running") == 0
    assert server.metric("albireo:num_requests_waiting") == 0


def test_a_completion_is_the_same_streamed_and_not(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="The list type", max_tokens=24, temperature=0)
    stream = client.completions.create(
        model=MODEL, prompt="The list type", max_tokens=24, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 24


def test_a_chat_is_the_same_streamed_and_not(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What does os.path.join do?"}]
    whole = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=32, temperature=0)
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=messages, max_tokens=32, temperature=0, stream=True)
    )
    assert whole.choices[0].message.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_seeded_sample_can_be_repeated_and_another_seed_differs(client: openai.OpenAI) -> None:
    def sample(seed: int) -> str:
        answer = client.completions.create(model=MODEL, prompt="Return", max_tokens=24, temperature=1.2, seed=seed)
        return answer.choices[0].text

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_64_concurrent_streams_each_get_their_own_text(server: Server) -> None:
    async def one(client: openai.AsyncOpenAI, seed: int) -> tuple[str, int]:
        stream = await client.completions.create(
            model=MODEL, prompt=f"Function number {seed}", max_tokens=20 + seed % 7, temperature=1.0, seed=seed,
            stream=True, stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
        )  # fmt: skip
        text, tokens = "", 0
        async for chunk in stream:
            text += chunk.choices[0].text if chunk.choices else ""
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        return text, tokens

    async def run() -> list[tuple[str, int]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(64)))

    results = asyncio.run(run())
    assert [tokens for _, tokens in results] == [20 + seed % 7 for seed in range(64)]
    assert len({text for text, _ in results}) == 64


def aborted(server: Server) -> float:
    return server.metric("albireo:request_success_total", finished_reason="abort")


def test_a_client_that_leaves_in_the_middle_is_aborted_and_disturbs_nobody(
    server: Server, client: openai.OpenAI
) -> None:
    options: Any = {"model": MODEL, "prompt": "import", "max_tokens": 1500, "extra_body": {"ignore_eos": True}}
    other = client.completions.create(**(options | {"max_tokens": 100}), temperature=0, stream=True)
    before = aborted(server)
    leaver = client.completions.create(**options, stream=True)
    next(iter(leaver))
    leaver.close()
    assert eventually(lambda: aborted(server) == before + 1)
    assert len("".join(chunk.choices[0].text for chunk in other)) > 0


def test_a_bad_request_is_a_400_and_a_running_stream_goes_on(server: Server, client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model=MODEL, prompt="class", max_tokens=60, temperature=0, stream=True, extra_body={"ignore_eos": True},
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = [next(iter(stream))]
    for field, value in (("max_tokens", 0), ("temperature", 9), ("n", 129), ("prompt", ""), ("unheard_of", 1)):
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(model=MODEL, prompt="x", extra_body={field: value})
        assert field in str(error.value)
    chunks += stream
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 60


def test_a_wrong_model_name_is_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.completions.create(model="gpt-9", prompt="x")


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "prompt": "The string method", "max_tokens": 60, "temperature": 0}
    text = client.completions.create(**options, extra_body={"ignore_eos": True}).choices[0].text
    stop = text[12:17]
    answer = client.completions.create(**options, stop=[stop], extra_body={"ignore_eos": True}).choices[0]
    assert answer.text == text[: text.index(stop)]
    assert answer.finish_reason == "stop"


def test_the_probes_answer(server: Server) -> None:
    for path in ("/health", "/version", "/v1/models", "/metrics"):
        with urllib.request.urlopen(server.url + path) as response:
            assert response.status == 200
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(server.url + "/nowhere")
    assert error.value.code == 404
    assert "error" in json.load(error.value)


def test_a_thousand_aborted_requests_leave_no_block_in_use(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"model": MODEL, "prompt": "def", "max_tokens": 900, "stream": True, "ignore_eos": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    submitted = server.metric("albireo:prompt_tokens_total")

    async def one(index: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + body)
        if index % 3:
            await reader.read(1)
        writer.close()

    async def run() -> None:
        for start in range(0, 1000, 100):
            await asyncio.gather(*(one(index) for index in range(start, start + 100)))

    asyncio.run(run())
    assert eventually(lambda: server.metric("albireo:num_requests_running") == 0, timeout_s=60)
    assert server.metric("albireo:prompt_tokens_total") > submitted + 300, "the requests did not reach the engine"
