"""The official client, synchronous and not, streamed and not."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fakes import endless_reply, tokens_reply, wait_for
from frontend_server import MODEL, FrontendServer
from tokenizers import Tokenizer

from albireo.messages import Finish

TEXT = "Hello world, 你好 😀 how are you today?"
MESSAGES: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def server(tokenizer_path: Path, tokenizer: Tokenizer, run_dir: Path) -> Iterator[FrontendServer]:
    with FrontendServer(run_dir, tokenizer_path, tokens_reply(tokenizer.encode(TEXT).ids, eos=2)) as server:
        yield server


@pytest.fixture
def client(server: FrontendServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_completion(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    answer = client.completions.create(model=MODEL, prompt="Hello", max_tokens=100)
    assert answer.object == "text_completion"
    assert answer.model == MODEL
    assert answer.choices[0].text == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(tokenizer.encode("Hello").ids)
    assert answer.usage.completion_tokens == len(tokenizer.encode(TEXT).ids) + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_completion_has_the_same_text_and_usage(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="Hello", max_tokens=100)
    chunks = list(
        client.completions.create(
            model=MODEL, prompt="Hello", max_tokens=100, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] in ([None, "stop"], ["stop"])
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_so_far_is_in_every_chunk_on_request(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.completions.create(model=MODEL, prompt="x", max_tokens=99, stream=True, stream_options=options)
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert counts[-1] == counts[-2] > counts[0] - 1


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"


def test_a_streamed_chat(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    assert chunks[0].object == "chat.completion.chunk"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_several_prompts_are_indexed_choices(client: openai.OpenAI, server: FrontendServer) -> None:
    answer = client.completions.create(model=MODEL, prompt=["one", "two", "three"], max_tokens=100)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.text for choice in answer.choices] == [TEXT] * 3
    texts = ["", "", ""]
    for chunk in client.completions.create(model=MODEL, prompt=[[5], [6], [7]], max_tokens=100, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [TEXT] * 3
    assert [len(submit.prompt_token_ids) for submit in server.coordinator.submits[3:]] == [4, 4, 4]


def test_token_ids_are_returned_on_request(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode(TEXT).ids, 2]
    extra = {"return_token_ids": True}
    answer: Any = client.completions.create(model=MODEL, prompt=[5, 6], max_tokens=100, extra_body=extra)
    assert (answer.choices[0].prompt_token_ids, answer.choices[0].token_ids) == ([5, 6], ids)
    stream: Any = list(
        client.completions.create(model=MODEL, prompt=[5, 6], max_tokens=100, extra_body=extra, stream=True)
    )
    assert stream[0].choices[0].prompt_token_ids == [5, 6]
    assert [id_ for chunk in stream for id_ in chunk.choices[0].token_ids] == ids
    chat: Any = client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body=extra)
    assert chat.choices[0].token_ids == ids
    stream = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body=extra, stream=True))
    assert stream[0].prompt_token_ids == chat.prompt_token_ids
    assert [id_ for chunk in stream for id_ in chunk.choices[0].token_ids] == ids


@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_ends_with_length(tokenizer_path: Path, run_dir: Path, tokenizer: Tokenizer, stream: bool) -> None:
    reply = endless_reply(tokenizer.encode(" the").ids)
    with (
        FrontendServer(run_dir, tokenizer_path, reply) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        answer: Any = client.completions.create(model=MODEL, prompt="x", max_tokens=6, stream=stream)
        last = list(answer)[-1] if stream else answer
        assert last.choices[0].finish_reason == "length"
        default = client.completions.create(model=MODEL, prompt="x")
        assert default.usage is not None
        assert default.usage.completion_tokens == 16
        near_the_end = client.completions.create(model=MODEL, prompt=[5] * 250)
        assert near_the_end.usage is not None
        assert near_the_end.usage.completion_tokens == 6
        chat = client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert chat.usage is not None
        assert chat.usage.total_tokens == 256


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("include", "expected"), [(False, "Hello world, 你好 "), (True, "Hello world, 你好 😀 how")])
def test_a_stop_string_ends_the_text_and_frees_the_engine(
    client: openai.OpenAI, server: FrontendServer, stream: bool, include: bool, expected: str
) -> None:
    extra = {"include_stop_str_in_output": include}
    answer: Any = client.completions.create(
        model=MODEL, prompt="x", max_tokens=100, stop=["nowhere", "😀 how"], stream=stream, extra_body=extra
    )
    chunks = list(answer) if stream else [answer]
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].choices[0].stop_reason == "😀 how"
    wait_for(lambda: server.coordinator.aborted == [1] or not server.coordinator.live)


def test_a_stop_token_id_is_told_and_not_shown(tokenizer_path: Path, run_dir: Path, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Hello world").ids
    with (
        FrontendServer(run_dir, tokenizer_path, tokens_reply(ids, Finish.STOP_TOKEN)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        answer: Any = client.completions.create(model=MODEL, prompt="x", extra_body={"stop_token_ids": [ids[-1]]})
        assert answer.choices[0].text == tokenizer.decode(ids[:-1])
        assert answer.choices[0].stop_reason == ids[-1]
        shown: Any = client.completions.create(
            model=MODEL, prompt="x", extra_body={"stop_token_ids": [ids[-1]], "include_stop_str_in_output": True}
        )
        assert shown.choices[0].text == "Hello world"
        assert server.coordinator.submits[0].sampling.stop_token_ids == (ids[-1],)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "alias"]
    assert client.models.retrieve("alias").id == "alias"
    assert client.completions.create(model="alias", prompt="x").model == MODEL


def test_64_concurrent_streams_and_one_that_leaves(tokenizer_path: Path, run_dir: Path, tokenizer: Tokenizer) -> None:
    """Each prompt comes back as its own text; the one that disconnects is aborted and disturbs no other."""

    async def one(client: openai.AsyncOpenAI, text: str) -> str:
        stream = await client.completions.create(model=MODEL, prompt=text, max_tokens=40, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def leave(client: openai.AsyncOpenAI) -> None:
        stream = await client.completions.create(model=MODEL, prompt="leaver", max_tokens=200, stream=True)
        async for _ in stream:
            await stream.close()
            break

    async def run(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=60) as client:
            leaver = asyncio.create_task(leave(client))
            texts = await asyncio.gather(*(one(client, f"text {number}!") for number in range(64)))
            await leaver
            return texts

    def echo(submit: Any) -> Any:
        import numpy as np

        ids = np.frombuffer(submit.prompt_token_ids, "<i4").tolist()
        if tokenizer.decode(ids) == "leaver":
            return endless_reply(ids)(submit)
        return tokens_reply(ids * 3)(submit)

    with FrontendServer(run_dir, tokenizer_path, echo, step_s=0.002) as server:
        texts = asyncio.run(run(server.url))
        assert texts == [f"text {number}!" * 3 for number in range(64)]
        leaver = next(s for s in server.coordinator.submits if s.sampling.max_tokens == 200)
        wait_for(lambda: server.coordinator.aborted == [leaver.request_id])
        wait_for(lambda: not server.coordinator.live)
