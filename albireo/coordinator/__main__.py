"""The coordinator process: `python -m albireo.coordinator`, started by the supervisor."""

import os
import sys
import time

import zmq

from albireo import child, sockets
from albireo.config import CoordinatorConfig
from albireo.coordinator.coordinator import Coordinator, RanksDifferError
from albireo.coordinator.grammars import GrammarLink, NoGrammars
from albireo.coordinator.scheduler import Scheduler
from albireo.coordinator.telemetry import Telemetry
from albireo.messages import EngineReady, GrammarDown, Progress, Ready, Stop
from albireo.shm.flight import FlightRecorder
from albireo.shm.plan_ring import PlanRing
from albireo.shm.stats import EngineStats
from albireo.shm.token_ring import TokenRing

RECHECK_MS = 20
"""With steps in flight: how long a lost doorbell can delay a step."""
IDLE_MS = 500
"""With nothing to do: how often the heartbeat is renewed."""


def wait_for_engine(control: child.Control) -> int | None:
    """Number of KV blocks once all workers are ready; None when the server stops before that."""
    while True:
        match control.wait(IDLE_MS):
            case EngineReady(num_kv_blocks=num_kv_blocks):
                return num_kv_blocks
            case Stop():
                return None


def run(config: CoordinatorConfig) -> None:
    """Serves until the supervisor says Stop."""
    child.give_way()
    context = zmq.Context()
    control = child.Control(context, config)
    frontends = sockets.open_socket(context, zmq.ROUTER)
    frontends.setsockopt(zmq.SNDHWM, 0)  # a lagging frontend's tokens wait in memory; its own limits cut clients off
    frontends.bind(sockets.coordinator_address(config.run_dir))
    grammar = sockets.open_socket(context, zmq.ROUTER)
    grammar.setsockopt(zmq.SNDHWM, 0)
    grammar.bind(sockets.grammar_address(config.run_dir))
    token_bell = sockets.token_bell_listener(context, config.run_dir)
    plan_bell = sockets.plan_bell(context, config.run_dir)
    control.send(Progress("waiting for the workers", 0.0))
    num_blocks = wait_for_engine(control)
    if num_blocks is None:
        return
    recorder = FlightRecorder(config.segments.flight[config.name], 0, os.getpid(), time.monotonic_ns)
    coordinator = Coordinator(
        config,
        Scheduler(
            config.scheduler,
            num_blocks,
            config.eos_token_ids,
            hash_key=os.urandom(32),
            num_workers=config.num_workers,
            sampling_mode=config.sampling_mode,
        ),
        PlanRing(config.scheduler, config.num_workers).writer(config.segments.plan_ring),
        [TokenRing(config.scheduler).reader(fd) for fd in config.segments.token_rings],
        frontends,
        plan_bell,
        Telemetry(EngineStats(config.segments.stats).engine, recorder),
        recorder,
        time.monotonic_ns,
        NoGrammars() if config.segments.grammar < 0 else GrammarLink(grammar),
    )
    child.settle()
    control.send(Ready())
    poller = zmq.Poller()
    for socket in (frontends, grammar, token_bell, control.socket):
        poller.register(socket, zmq.POLLIN)
    while not isinstance(message := control.poll(), Stop):
        if isinstance(message, GrammarDown):
            coordinator.grammar_down(message)
        sockets.drain(token_bell)
        try:
            coordinator.step()
        except RanksDifferError as error:
            control.fatal(str(error))
            context.destroy(linger=1000)
            sys.exit(1)
        poller.poll(RECHECK_MS if coordinator.is_busy else IDLE_MS)


if __name__ == "__main__":
    run(child.start(CoordinatorConfig))
