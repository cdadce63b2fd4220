"""Two frontends on one port: both serve, either shows the whole server on /metrics, they start and end together."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from server import Server, eventually, processes

pytestmark = pytest.mark.e2e
MODEL = "albireo-demo"
NUM_REQUESTS = 48


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("--kv-cache-bytes", "64M", "--frontends", "2") as server:
        yield server


def frontends(server: Server) -> list[int]:
    return [pid for name, pid in sorted(server.children().items()) if name.startswith("albireo-frontend-")]


def inodes(pid: int) -> set[str]:
    """The sockets that a process has open."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:[")}


def num_connections(pid: int, port: int) -> int:
    """Established connections of a process's on our port."""
    own, found = inodes(pid), 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        found += fields[3] == "01" and int(fields[1].split(":")[1], 16) == port and fields[9] in own
    return found


def ask(server: Server) -> set[int]:
    """NUM_REQUESTS at once, on as many new connections; every other one streams. Returns the pids that served them."""

    async def one(client: openai.AsyncOpenAI, seed: int) -> str:
        options = {"model": MODEL, "prompt": f"Function number {seed}", "max_tokens": 16, "temperature": 0.0}
        if seed % 2:
            return str((await client.completions.create(**options)).choices[0].text)  # type: ignore[call-overload]
        stream = await client.completions.create(**options, stream=True)  # type: ignore[call-overload]
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def run() -> set[int]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60) as client:
            texts = await asyncio.gather(*(one(client, seed) for seed in range(NUM_REQUESTS)))
            assert len(set(texts)) > NUM_REQUESTS // 2, (
                "two frontends' requests have the same numbers, and must not mix"
            )
            port = int(server.url.rsplit(":", 1)[1])
            return {pid for pid in frontends(server) if num_connections(pid, port)}

    return asyncio.run(run())


def test_both_serve_and_metrics_are_those_of_the_whole_server(server: Server) -> None:
    assert len(frontends(server)) == 2
    rounds, served = 0, set[int]()
    while served != set(frontends(server)):
        assert rounds < 10, "a frontend serves nobody"
        served |= ask(server)
        rounds += 1
    for _ in range(8):  # a new connection each time: whichever frontend answers
        assert server.metric("albireo:request_success_total", finished_reason="abort") == 0
        assert server.metric("albireo:e2e_request_latency_seconds_count") == rounds * NUM_REQUESTS
        assert server.metric("albireo:time_to_first_token_seconds_count") == rounds * NUM_REQUESTS
        assert server.metric("albireo:request_generation_tokens_sum") == server.metric(
            "albireo:generation_tokens_total"
        )


def test_a_signal_ends_both_and_leaves_nothing(server: Server) -> None:
    children = set(server.children().values())
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert not {pid for pid, _, _ in processes()} & children


@pytest.mark.slow
def test_when_one_frontend_dies_the_others_streams_go_on_and_another_takes_its_place(server: Server) -> None:
    port = int(server.url.rsplit(":", 1)[1])

    def stream(seed: int, kills: bool = False) -> str | None:
        """The text, or None if its frontend died."""
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60, max_retries=0)
        options = {"model": MODEL, "prompt": f"Function {seed}", "max_tokens": 500, "temperature": 0.0}
        text = ""
        try:
            with client.completions.create(**options, stream=True, extra_body={"ignore_eos": True}) as chunks:  # type: ignore[call-overload]
                for chunk in chunks:
                    text += chunk.choices[0].text
                    if kills and len(text) > 40:
                        kills = False
                        (victim,) = [pid for pid in frontends(server)[:1] if num_connections(pid, port) >= 0]
                        os.kill(victim, signal.SIGKILL)
        except (openai.APIConnectionError, httpx.RemoteProtocolError):
            return None
        return text

    expected = [stream(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(stream, range(8), [True] + [False] * 7))
    survivors = [seed for seed, text in enumerate(texts) if text is not None]
    assert survivors, "every stream was one frontend's"
    assert [texts[seed] for seed in survivors] == [expected[seed] for seed in survivors]
    assert any("frontend-0" in line and "was killed by SIGKILL" in line for line in server.lines)
    assert eventually(lambda: len(frontends(server)) == 2)
    assert eventually(lambda: server.metric("albireo:num_requests_running") == 0)
    ask(server)


@pytest.mark.parametrize("number", ["0", "17"])
def test_a_number_of_frontends_out_of_bounds_is_refused(number: str) -> None:
    command = [sys.executable, "-m", "albireo.cli", "serve", "--frontends", number]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--frontends" in done.stderr
    assert "between 1 and 16" in done.stderr
