"""Offers the load: requests when they are due, no more than the allowed number at once."""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Sequence

from albireo.bench.connection import ConnectionPool
from albireo.bench.event_stream import COMPLETION_TOKENS, EventStream


async def offer(
    pool: ConnectionPool,
    requests: Sequence[bytes],
    due_s: Sequence[float],
    max_concurrency: int | None,
    timeout_s: float,
    on_done: Callable[[], None] = lambda: None,
    token_event: re.Pattern[bytes] = COMPLETION_TOKENS,
) -> list[EventStream]:
    """Sends `requests[i]` at `due_s[i]` seconds from now and returns their streams in order once all have ended;
    `on_done` is called as each of them ends. `token_event`: as of EventStream.

    As in `vllm bench serve`, a request that waits for its turn under `max_concurrency` starts, and its clock with
    it, when it gets that turn; opening a connection counts as part of the request.
    """
    streams = [EventStream(token_event) for _ in requests]
    turns = asyncio.Semaphore(max_concurrency) if max_concurrency is not None else contextlib.nullcontext()
    started_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for request, due, stream in zip(requests, due_s, streams, strict=True):
            wait_s = started_s + due - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            task = group.create_task(_send(pool, request, stream, turns, timeout_s))
            task.add_done_callback(lambda _: on_done())
    return streams


async def _send(
    pool: ConnectionPool,
    request: bytes,
    stream: EventStream,
    turns: contextlib.AbstractAsyncContextManager[None],
    timeout_s: float,
) -> None:
    async with turns:
        stream.start_ns = time.perf_counter_ns()
        try:
            async with asyncio.timeout(timeout_s):
                await pool.request(request, stream)
        except TimeoutError:
            stream.error = f"no complete answer within {timeout_s:g} s"
        except OSError as error:
            stream.error = f"{type(error).__name__}: {error}"
        stream.end_ns = time.perf_counter_ns()
