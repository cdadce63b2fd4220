"""Probes: is this process alive, does the engine make progress, may requests come."""

from collections.abc import Callable
from typing import Any

import numpy.typing as npt
from starlette.types import Receive, Scope, Send

from albireo import limits
from albireo.errors import UnavailableError
from albireo.frontend.json_response import send_json
from albireo.frontend.service import Service


def engine_problem(stats: npt.NDArray[Any], now_ns: int) -> str | None:
    """Why the engine makes no progress, or None. `stats`: ENGINE_STATS[1]; `now_ns`: CLOCK_MONOTONIC."""
    record = stats[0]
    if now_ns - int(record["heartbeat_ns"]) > limits.ENGINE_HEARTBEAT_TIMEOUT_NS:
        return "the engine's heartbeat is stale"
    is_busy = int(record["num_running"]) + int(record["num_waiting"]) > 0
    if is_busy and now_ns - int(record["progress_ns"]) > limits.ENGINE_PROGRESS_TIMEOUT_NS:
        return "the engine has work and confirms no step"
    return None


def no_engine(service: Service) -> str | None:
    """Why no replica makes progress, or None where one does: it takes the requests of the others."""
    now_ns = service.clock_ns()
    problems = [
        engine_problem(stats, now_ns) if service.engine.is_up(number) else "the engine is starting"
        for number, stats in enumerate(service.stats)
    ]
    return None if None in problems else problems[0]


class Probe:
    """ASGI endpoint: 200, or 503 with the reason that `problem` gives."""

    def __init__(self, problem: Callable[[], str | None]) -> None:
        self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (problem := self._problem()) is not None:
            raise UnavailableError(problem)
        await send_json(send, 200, b'{"status":"ok"}')


def live(service: Service) -> Probe:
    """`/live`: this process answers."""
    return Probe(lambda: None)


def health(service: Service) -> Probe:
    """`/health`: the engine makes progress. While all that compute are starting again it does not, though it will."""
    return Probe(lambda: no_engine(service))


def ready(service: Service) -> Probe:
    """`/ready`: a request sent now would be taken, and the engine makes progress."""
    return Probe(lambda: service.unavailable or no_engine(service))
