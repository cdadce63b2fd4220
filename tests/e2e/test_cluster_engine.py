"""An engine as the child of a Ray Serve replica, without Ray: how it starts, what it says, and that it never outlives
whoever has started it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from server import eventually, processes

from albireo.cluster.engine import Engine, EngineStartError
from albireo.cluster.upstream import get

pytestmark = pytest.mark.e2e
FLAGS = ("--device", "null", "--disable-uvicorn-access-log")
PARENT = """
import asyncio, sys
from albireo.cluster.engine import Engine
async def run():
    engine = Engine(sys.argv[1:], {}, 5.0)
    await engine.start()
    print(engine._process.pid, engine.socket_path, flush=True)
    await asyncio.sleep(600)
asyncio.run(run())
"""


def family(pid: int) -> set[int]:
    """A process and all below it."""
    found, everyone = {pid}, processes()
    while more := {child for child, parent, _ in everyone if parent in found} - found:
        found |= more
    return found


def test_an_engine_serves_on_its_socket_and_leaves_nothing() -> None:
    async def run() -> None:
        engine = Engine(FLAGS, {"ALBIREO_API_KEY": "secret"}, 5.0)
        await engine.start()
        assert await engine.is_well()
        status, _ = await get(engine.socket_path, "/v1/models", 5.0)
        assert status == 401, "the key of the environment holds"
        key = [(b"authorization", b"Bearer secret")]
        status, body = await get(engine.socket_path, "/v1/models", 5.0, key)
        assert (status, json.loads(body)["data"][0]["id"]) == (200, "albireo-demo")
        pids = family(engine._process.pid)
        await engine.stop()
        assert await engine.wait_for_end() == 0
        assert not await engine.is_well()
        assert not pids & {pid for pid, _, _ in processes()}
        assert not Path(engine.socket_path).parent.exists()

    asyncio.run(run())


def test_an_engine_that_cannot_start_says_why_in_one_line() -> None:
    async def run() -> None:
        engine = Engine(("/nowhere/model", *FLAGS), {}, 5.0)
        with pytest.raises(EngineStartError, match=r"^/nowhere/model does not exist: .*$"):
            await engine.start()

    asyncio.run(run())


def test_an_engine_ends_with_whoever_has_started_it_and_was_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *FLAGS], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, path = parent.stdout.readline().split()
    pids = family(int(pid))
    assert len(pids) >= 4
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: not pids & {pid for pid, _, _ in processes()}, 30)
    assert eventually(lambda: not Path(path).parent.exists())
