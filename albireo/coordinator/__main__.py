"""The coordinator process: `python -m albireo.coordinator`, started by the supervisor."""

import os
import sys
import time

import zmq

from albireo import child, sockets
from albireo.config import CoordinatorConfig
from albireo.coordinator.coordinator import Coordinator, RanksDifferError
from albireo.coordinator.grammars import GrammarLink, NoGrammars
from albireo.coordinator.rings import EngineRings
from albireo.coordinator.scheduler import Scheduler
from albireo.coordinator.telemetry import Telemetry
from albireo.messages import (
    EngineHalted,
    EngineReady,
    FromSupervisor,
    FrontendDown,
    GrammarDown,
    Progress,
    Ready,
    Stop,
    WorkersDown,
)
from albireo.shm.flight import FlightRecorder
from albireo.shm.stats import EngineStats

RECHECK_MS = 20
"""With steps in flight: how long a lost doorbell can delay a step. With requests that may wait too long: how late it is
seen."""
IDLE_MS = 500
"""With nothing to do: how often the heartbeat is renewed."""
TAKE_OVER_MS = 2
"""How often a coordinator that takes another's place looks whether the workers are done with the old one's steps."""


def wait_for_engine(control: child.Control, rings: EngineRings, recorder: FlightRecorder) -> int | None:
    """Number of KV blocks once all workers are ready and at rest; None when the server stops before that."""
    num_blocks = None
    while True:
        recorder.beat()
        match control.wait(IDLE_MS if num_blocks is None else TAKE_OVER_MS):
            case EngineReady() as message:
                num_blocks = message.num_kv_blocks
            case WorkersDown():
                num_blocks = None
                control.send(EngineHalted())
            case Stop():
                return None
        if num_blocks is not None and rings.take_over():
            return num_blocks


def hear(message: FromSupervisor, coordinator: Coordinator, control: child.Control, config: CoordinatorConfig) -> None:
    """What the supervisor says while requests are served."""
    match message:
        case GrammarDown():
            coordinator.grammar_down(message)
        case FrontendDown():
            coordinator.frontend_down(message.frontend)
        case WorkersDown():
            coordinator.halt()
            control.send(EngineHalted())
        case EngineReady():
            rings = EngineRings(config)
            coordinator.resume(message.num_kv_blocks, rings.plans, rings.tokens)
            control.send(Ready())


def run(config: CoordinatorConfig) -> None:
    """Serves until the supervisor says Stop."""
    child.give_way()
    context = zmq.Context()
    control = child.Control(context, config)
    frontends = sockets.open_socket(context, zmq.ROUTER)
    frontends.setsockopt(zmq.SNDHWM, 0)  # a lagging frontend's tokens wait in memory; its own limits cut clients off
    frontends.bind(sockets.coordinator_address(config.run_dir, config.identity))
    grammar = sockets.open_socket(context, zmq.ROUTER)
    grammar.setsockopt(zmq.SNDHWM, 0)
    grammar.bind(sockets.grammar_address(config.run_dir, config.identity))
    token_bell = sockets.token_bell_listener(context, config.run_dir, config.replica)
    plan_bell = sockets.plan_bell(context, config.run_dir, config.replica)
    recorder = FlightRecorder(config.segments.flight[config.name], config.replica, os.getpid(), time.monotonic_ns)
    control.send(Progress("waiting for the workers", 0.0))
    rings = EngineRings(config)
    num_blocks = wait_for_engine(control, rings, recorder)
    if num_blocks is None:
        return
    scheduler = Scheduler(
        config.scheduler,
        num_blocks,
        config.eos_token_ids,
        hash_key=os.urandom(32),
        num_workers=config.num_workers,
        sampling_mode=config.sampling_mode,
    )
    coordinator = Coordinator(
        config,
        scheduler,
        rings.plans,
        rings.tokens,
        frontends,
        plan_bell,
        Telemetry(EngineStats(config.segments.stats).engine, recorder, scheduler.counters),
        recorder,
        time.monotonic_ns,
        NoGrammars() if config.segments.grammar < 0 else GrammarLink(grammar, scheduler),
    )
    child.settle()
    control.send(Ready())
    poller = zmq.Poller()
    for socket in (frontends, grammar, token_bell, control.socket):
        poller.register(socket, zmq.POLLIN)
    while not isinstance(message := control.poll(), Stop):
        recorder.beat()
        sockets.drain(token_bell)
        try:
            if message is not None:
                hear(message, coordinator, control, config)
            coordinator.step()
        except RanksDifferError as error:
            control.fatal(str(error))
            context.destroy(linger=1000)
            sys.exit(1)
        poller.poll(RECHECK_MS if coordinator.is_busy or coordinator.is_watching else IDLE_MS)


if __name__ == "__main__":
    run(child.start(CoordinatorConfig))
