"""A slow template is stopped where it is, and the thread that it ran on lives on."""

import asyncio
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fakes import tokens_reply
from frontend_server import FrontendServer

from albireo import limits
from albireo.frontend.deadline import Deadline, DeadlineExceeded


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


async def guarded(executor: ThreadPoolExecutor, work_s: float, timeout_s: float) -> str:
    """`done`, or `late` when the deadline stopped the work."""
    deadline = Deadline(asyncio.get_running_loop(), timeout_s)

    def work() -> str:
        try:
            with deadline:
                end = time.monotonic() + work_s
                while time.monotonic() < end:
                    pass
            return "done"
        except DeadlineExceeded:
            return "late"

    try:
        return await asyncio.get_running_loop().run_in_executor(executor, work)
    finally:
        deadline.cancel()


def test_work_that_never_ends_is_stopped(executor: ThreadPoolExecutor) -> None:
    assert asyncio.run(guarded(executor, work_s=1e9, timeout_s=0.05)) == "late"
    assert asyncio.run(guarded(executor, work_s=0.0, timeout_s=10.0)) == "done"


def test_waiting_for_a_thread_does_not_count(executor: ThreadPoolExecutor) -> None:
    async def run() -> list[str]:
        return await asyncio.gather(*(guarded(executor, work_s=0.05, timeout_s=1.0) for _ in range(30)))

    assert asyncio.run(run()) == ["done"] * 30


def test_a_deadline_that_meets_the_end_of_the_work_hits_nothing_else(executor: ThreadPoolExecutor) -> None:
    async def run() -> set[str]:
        ways = random.Random(0)
        return {await guarded(executor, 0.002, 0.002 + ways.uniform(-3e-4, 3e-4)) for _ in range(300)}

    assert asyncio.run(run()) <= {"done", "late"}
    assert executor.submit(lambda: sum(range(1000))).result() == 499500


def test_a_slow_template_is_a_400_and_the_next_chat_is_served(
    tokenizer_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TEMPLATE_TIMEOUT_S", 0.6)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i * j %}{% endfor %}{% endfor %}"
    template = "{% if messages[0].content == 'slow' %}" + endless + "{% endif %}ok"
    with FrontendServer(run_dir, tokenizer_path, tokens_reply([74]), chat_template=template) as server:
        url = server.url + "/v1/chat/completions"
        for _ in range(5):  # more than there are threads
            slow = httpx.post(url, json={"messages": [{"role": "user", "content": "slow"}]})
            assert slow.status_code == 400
            assert "longer than 0.6 s" in slow.json()["error"]["message"]
        assert httpx.post(url, json={"messages": [{"role": "user", "content": "fast"}]}).status_code == 200
