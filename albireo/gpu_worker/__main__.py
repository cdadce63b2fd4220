"""A worker process: `python -m albireo.gpu_worker`, one per tensor-parallel rank, started by the supervisor."""

import logging
import sys
import time

import zmq

from albireo import child, sockets
from albireo.config import WorkerConfig
from albireo.gpu_worker.collectives.group import make_collectives
from albireo.gpu_worker.collectives.interface import GroupClosedError
from albireo.gpu_worker.compile_ahead import CompileAhead
from albireo.gpu_worker.cpu_device import CpuDevice
from albireo.gpu_worker.worker import Worker
from albireo.messages import Progress, Stop, WorkerReady
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
    context = zmq.Context()
    control = child.Control(context, config)
    heartbeat = EngineStats(config.segments.stats).workers[config.rank : config.rank + 1]

    def beat() -> None:
        heartbeat["heartbeat_ns"] = time.monotonic_ns()

    ahead = CompileAhead(config)
    try:
        ahead.begin()
        collectives = make_collectives(config, heartbeat, time.monotonic_ns)
        device = CpuDevice(config, collectives, beat, lambda stage, fraction: control.send(Progress(stage, fraction)))
    except Exception as error:
        log.debug("the worker cannot start", exc_info=True)
        control.fatal(f"{type(error).__name__}: {error}", exit_code=3)
        control.socket.close()
        context.term()
        sys.exit(3)
    ahead.stop()
    worker = Worker(
        device,
        PlanRing(config.scheduler, config.num_workers).reader(config.segments.plan_ring, config.rank),
        TokenRing(config.scheduler).writer(config.segments.token_rings[config.rank]),
        sockets.token_bell(context, config.run_dir).ring,
        heartbeat,
        time.monotonic_ns,
    )
    bell = sockets.plan_bell_listener(context, config.run_dir)
    control.send(WorkerReady(device.num_kv_blocks, device.name))
    try:
        serve(worker, bell, control)
    except GroupClosedError:
        # another rank heard Stop first and left in the middle of a step; it is on its way to this one
        log.debug("another rank has left the group")
    collectives.close()


def serve(worker: Worker, bell: "zmq.Socket[bytes]", control: child.Control) -> None:
    """Steps until Stop. Raises GroupClosedError when another rank has left."""
    poller = zmq.Poller()
    for socket in (bell, control.socket):
        poller.register(socket, zmq.POLLIN)
    last_step_ns = 0
    while not isinstance(control.poll(), Stop):
        sockets.drain(bell)
        while worker.step():
            last_step_ns = time.monotonic_ns()
        is_idle = time.monotonic_ns() - last_step_ns > IDLE_AFTER_NS
        poller.poll(IDLE_MS if is_idle else RECHECK_MS)


if __name__ == "__main__":
    run(child.start(WorkerConfig))
