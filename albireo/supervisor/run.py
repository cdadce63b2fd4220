"""One engine from its specs to its exit code."""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from albireo import __version__, config
from albireo.config import SegmentFds
from albireo.engine_file import EngineInfo, write_engine_file
from albireo.engine_segments import create_segments
from albireo.errors import StartupError
from albireo.listener import ListenAddress, listening
from albireo.notify import Notifier
from albireo.run_directory import RunDirectory
from albireo.settings import LiveSettings
from albireo.shm.segment import SegmentError
from albireo.signal_pipe import SignalPipe
from albireo.startup_display import StartupDisplay
from albireo.supervisor.child_process import ChildSpec
from albireo.supervisor.deaths import EngineStopped
from albireo.supervisor.engine_memory import EngineMemory
from albireo.supervisor.supervisor import Supervisor

log = logging.getLogger(__name__)


def run_engine(
    make_specs: Callable[[str, Sequence[SegmentFds], int], list[ChildSpec]],
    scheduler: config.SchedulerConfig,
    num_workers: int,
    num_replicas: int,
    model_name: str,
    address: ListenAddress,
    display: StartupDisplay,
    shutdown_timeout_s: float,
    worker_timeout_s: float,
    num_frontends: int,
    vocab_size: int | None,
    settings: LiveSettings | None,
) -> int:
    """Starts replicas of `num_workers` ranks each, serves until a signal or until it gives up, stops them; returns the
    exit code.

    `make_specs` gets the run directory, each replica's segments and the listening socket's descriptor. `vocab_size`:
    of a model that can serve structured output. `settings`: what SIGHUP reads again. Raises StartupError.
    """
    with ExitStack() as stack:
        signals = stack.enter_context(SignalPipe())
        notifier = Notifier()
        stack.callback(notifier.close)
        listener = stack.enter_context(listening(address))
        run_dir = stack.enter_context(RunDirectory())
        try:
            replicas = []
            for number in range(num_replicas):
                names = config.process_names(num_workers, num_frontends, vocab_size is not None, number)
                num_counters = 0 if number else num_frontends * num_replicas
                replicas.append(create_segments(scheduler, num_workers, names, num_counters, vocab_size))
        except SegmentError as error:
            raise StartupError(str(error)) from error
        memories = [
            EngineMemory(segments, scheduler, num_workers, worker_timeout_s, number, num_replicas)
            for number, segments in enumerate(replicas)
        ]
        supervisor = Supervisor(run_dir, signals, display, shutdown_timeout_s, memories, notifier, settings)
        stack.callback(supervisor.stop)
        try:
            worker = supervisor.start(make_specs(run_dir, replicas, listener.socket.fileno()))
            device = worker.device if num_workers == 1 else f"{num_workers} x {worker.device}"
            if num_replicas > 1:
                device = f"{num_replicas} replicas of {device}"
            flight = {name: fd for segments in replicas for name, fd in segments.flight.items()}
            where = (listener.host, listener.port, listener.url)
            info = EngineInfo(os.getpid(), __version__, model_name, *where, flight)
            write_engine_file(run_dir, info)
            display.ready(device, worker.num_kv_blocks * scheduler.block_size, listener.description)
            notifier.ready(f"serving {model_name} at {listener.url}")
            while True:
                supervisor.watch()
        except EngineStopped as stopped:
            if not stopped.exit_code:
                log.info("stopping: no new requests, running streams have %g s to finish", shutdown_timeout_s)
            notifier.stopping("stopping: running streams may finish")
            return stopped.exit_code
