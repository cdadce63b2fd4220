"""A worker process: `python -m albireo.gpu_worker`, one per tensor-parallel rank, started by the supervisor."""

import logging
import os
import sys
import time
from collections.abc import Callable

import zmq

from albireo import child, sockets
from albireo.config import WorkerConfig
from albireo.gpu_worker.make_device import make_device
from albireo.gpu_worker.stream_worker import StreamWorker
from albireo.gpu_worker.worker import Worker
from albireo.messages import Progress, Stop, WorkerReady
from albireo.shm.flight import FlightRecorder
from albireo.shm.plan_ring import PlanRing
from albireo.shm.stats import EngineStats
from albireo.shm.token_ring import TokenRing

log = logging.getLogger(__name__)

RECHECK_MS = 20
"""How long a lost doorbell can delay a step while plans keep coming."""
IDLE_MS = 500
"""With no plan for a while: how often the heartbeat is renewed."""
IDLE_AFTER_NS = 2_000_000_000


def run(config: WorkerConfig) -> None:
    """Loads, reports, and serves until the supervisor says Stop."""
    with child.giving_way():  # ZeroMQ's own threads
        context = zmq.Context()
        control = child.Control(context, config)
    heartbeat = EngineStats(config.segments.stats).workers[config.rank : config.rank + 1]
    fd = config.segments.flight[config.name]
    recorder = FlightRecorder(fd, config.number, os.getpid(), time.monotonic_ns)
    try:
        made = make_device(config, heartbeat, recorder, lambda stage, fraction: control.send(Progress(stage, fraction)))
    except Exception as error:
        log.debug("the worker cannot start", exc_info=True)
        control.fatal(f"{type(error).__name__}: {error}", exit_code=3)
        control.socket.close()
        context.term()
        sys.exit(3)
    worker = made.make_worker(
        PlanRing(config.scheduler, config.num_workers).reader(config.segments.plan_ring, config.rank),
        TokenRing(config.scheduler).writer(config.segments.token_rings[config.rank]),
        sockets.token_bell(context, config.run_dir, config.replica).ring,
        heartbeat,
        recorder,
        time.monotonic_ns,
    )
    bell = sockets.plan_bell_listener(context, config.run_dir, config.replica)
    child.settle()
    control.send(WorkerReady(made.num_kv_blocks, made.name))
    try:
        serve(worker, bell, control, made.wake_fd, made.on_pause)
    except made.group_closed_errors:
        # another rank heard Stop first and left in the middle of a step; it is on its way to this one
        log.debug("another rank has left the group")
    made.close()


def serve(
    worker: Worker | StreamWorker,
    bell: "zmq.Socket[bytes]",
    control: child.Control,
    wake_fd: int = -1,
    on_pause: Callable[[], None] = lambda: None,
) -> None:
    """Steps until Stop; `wake_fd`, `on_pause`: as of `MadeDevice`. Raises what the device raises, as when another rank
    has left the group."""
    poller = zmq.Poller()
    for socket in (bell, control.socket):
        poller.register(socket, zmq.POLLIN)
    if wake_fd >= 0:
        poller.register(wake_fd, zmq.POLLIN)
    last_step_ns = 0
    while not isinstance(control.poll(), Stop):
        sockets.drain(bell)
        while worker.step():
            last_step_ns = time.monotonic_ns()
        on_pause()
        is_idle = time.monotonic_ns() - last_step_ns > IDLE_AFTER_NS
        poller.poll(IDLE_MS if is_idle else RECHECK_MS)


if __name__ == "__main__":
    child.wait_as_spare(sys.argv[1:])
    run(child.start(WorkerConfig))
