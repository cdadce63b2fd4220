"""Show 3 on real processes: the same tokens for every --run-ahead, whatever ends a sequence."""

import asyncio
from typing import Any

import openai
import pytest
from server import Server, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.95},
    {"temperature": 1.3, "extra_body": {"top_k": 50}},
    {"temperature": 1.5, "extra_body": {"min_p": 0.02, "ignore_eos": True}},
    {"temperature": 1.2, "stop": ["the", "\n"]},
    {"temperature": 1.2, "extra_body": {"stop_token_ids": list(range(300, 312))}},
]


def generate(server: Server) -> list[tuple[str, str | None, str]]:
    """(text, finish_reason, stop_reason) of 48 requests that run together."""

    async def one(client: openai.AsyncOpenAI, seed: int) -> tuple[str, str | None, str]:
        prompt = "The function returns a list of " * (1 + seed % 5) + str(seed % 7)
        answer = await client.completions.create(
            model="albireo-demo", prompt=prompt, max_tokens=8 + 2 * seed, seed=seed, **OPTIONS[seed % len(OPTIONS)]
        )
        choice = answer.choices[0]
        return choice.text, choice.finish_reason, repr(getattr(choice, "stop_reason", None))

    async def run() -> list[tuple[str, str | None, str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=100) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(48)))

    return asyncio.run(run())


def run(run_ahead: int, *arguments: str, preempts: bool = False) -> list[tuple[str, str | None, str]]:
    with Server("--dtype", "float32", "--run-ahead", str(run_ahead), *arguments) as server:
        answers = generate(server)
        assert (server.metric("albireo:num_preemptions_total") > 0) == preempts
        assert (server.metric("albireo:swapped_in_blocks_total") > 0) == ("--swap-space" in arguments)
        assert eventually(lambda: server.metric("albireo:kv_cache_usage_perc") == 0)
        assert server.metric("albireo:cpu_cache_usage_perc") == 0
    return answers


def test_tokens_are_the_same_for_every_run_ahead_on_real_processes() -> None:
    synchronous = run(0)
    reasons = {(finish, stop) for _, finish, stop in synchronous}
    assert {finish for finish, _ in reasons} == {"stop", "length"}
    assert ("stop", "None") in reasons, "no sequence ended by EOS"
    assert any(stop.isdigit() for _, stop in reasons), "no sequence ended by a stop id"
    assert any(stop.startswith("'") for _, stop in reasons), "no sequence ended by a stop string"
    for run_ahead in (1, 2, 4):
        assert run(run_ahead) == synchronous
    little = ("--kv-cache-bytes", "4M", "--max-model-len", "512")
    assert run(2, *little, preempts=True) == synchronous
    swapping = ("--swap-space", "0.02", "--no-enable-prefix-caching")
    assert run(2, *little, *swapping, preempts=True) == synchronous
    assert run(0, *little, *swapping, "-tp", "2", preempts=True) == synchronous
