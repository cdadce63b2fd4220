"""The grammar process: `python -m albireo.grammar`, started by the supervisor, who starts another when it dies."""

import os
import sys
import time

import zmq

from albireo import child, sockets
from albireo.config import GrammarConfig
from albireo.grammar.compile_pool import CompilePool, StuckError
from albireo.grammar.compiler import Compiler, GrammarError
from albireo.grammar.grammarian import Grammarian
from albireo.grammar.matchers import Matchers
from albireo.messages import GrammarUp, Progress, Ready, Stop, encode
from albireo.shm.flight import FlightRecorder
from albireo.shm.grammar_masks import GrammarMasks

BUSY_MS = 100
"""While grammars are being compiled: how often their deadlines are looked at."""
IDLE_MS = 500
MAX_THREADS = 4
"""Most that compile, or compute masks, at a time."""


def run(config: GrammarConfig) -> None:
    """Serves until the supervisor says Stop."""
    child.give_way()
    context = zmq.Context()
    control = child.Control(context, config)
    control.send(Progress("tokenizer", 0.0))
    coordinator = sockets.open_socket(context, zmq.DEALER)
    coordinator.setsockopt(zmq.IDENTITY, f"{config.name}-{os.getpid()}".encode())
    coordinator.setsockopt(zmq.SNDHWM, 0)
    coordinator.setsockopt(zmq.RCVHWM, 0)
    coordinator.connect(sockets.grammar_address(config.run_dir, config.coordinator))
    control.send(Ready())
    recorder = FlightRecorder(config.segments.flight[config.name], config.replica, os.getpid(), time.monotonic_ns)
    try:
        compiler = Compiler(config.tokenizer_path, config.vocab_size, config.eos_token_ids)
    except GrammarError as error:
        coordinator.send(encode(GrammarUp(os.getpid(), str(error))))
        wait_for_stop(control, recorder)
        return
    table = GrammarMasks(config.scheduler.num_slots, config.vocab_size).attach(config.segments.grammar)
    table.tags[:] = 0
    num_threads = min(MAX_THREADS, len(os.sched_getaffinity(0)))
    pool = CompilePool(compiler, time.monotonic_ns, num_threads)
    matchers = Matchers(table, compiler.tokenizer, num_threads)
    grammarian = Grammarian(coordinator, pool, matchers, recorder, time.monotonic_ns)
    child.settle()
    coordinator.send(encode(GrammarUp(os.getpid(), None)))
    poller = zmq.Poller()
    for source in (coordinator, control.socket, pool.wake_fd):
        poller.register(source, zmq.POLLIN)
    while not isinstance(control.poll(), Stop):
        recorder.beat()
        try:
            grammarian.step()
        except StuckError as error:
            control.fatal(str(error))
            context.destroy(linger=1000)
            sys.exit(1)
        poller.poll(BUSY_MS if pool.is_busy else IDLE_MS)


def wait_for_stop(control: child.Control, recorder: FlightRecorder) -> None:
    """Grammars cannot be served, and nobody asks for any."""
    while not isinstance(control.wait(IDLE_MS), Stop):
        recorder.beat()


if __name__ == "__main__":
    run(child.start(GrammarConfig))
