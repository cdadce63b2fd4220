"""The frontend process: `python -m albireo.frontend`, started by the supervisor."""

import asyncio
import gc
import logging
import os
import signal
import sys
import time

import uvloop
import zmq

from albireo import child
from albireo.config import FrontendConfig
from albireo.errors import StartupError
from albireo.frontend.server import serve
from albireo.frontend.service import TextModel
from albireo.messages import Progress
from albireo.shm.flight import FlightRecorder
from albireo.shm.request_counts import map_request_counts
from albireo.shm.routes import Routes
from albireo.shm.stats import EngineStats

BEAT_S = 0.25

logger = logging.getLogger("albireo.frontend")


async def run(config: FrontendConfig, context: "zmq.Context[zmq.Socket[bytes]]", control: "zmq.Socket[bytes]") -> None:
    """Serves until SIGTERM or the supervisor's Stop."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    stats = [EngineStats(segments.stats).engine for segments in config.replicas]
    counts = map_request_counts(config.segments.requests)
    routes = Routes(config.segments.routes, len(stats), config.index)
    recorder = FlightRecorder(config.segments.flight[config.name], config.index, os.getpid(), time.monotonic_ns)
    text = TextModel(config)
    pulse = asyncio.create_task(beat(recorder))
    # What exists by now lives as long as the process. Left to the collector, a full collection goes through it all,
    # 44,000 objects and tens of milliseconds, in the middle of streams.
    gc.collect()
    gc.freeze()
    await serve(config, text, stats, counts, routes, context, control, stop, recorder)
    pulse.cancel()


async def beat(recorder: FlightRecorder) -> None:
    """Shows the supervisor that the event loop turns."""
    while True:
        recorder.beat()
        await asyncio.sleep(BEAT_S)


def main() -> int:
    config = child.start(FrontendConfig)
    child.give_way()
    context = zmq.Context()
    control = child.Control(context, config)
    # a ROUTER drops what it has for a peer that it has not met: EngineReady must find us
    control.send(Progress("tokenizer", 0.0))
    try:
        uvloop.run(run(config, context, control.socket))
        return 0
    except StartupError as error:
        control.fatal(str(error), error.exit_code)
        return error.exit_code
    except Exception as error:
        logger.exception("the frontend failed")
        control.fatal(f"{type(error).__name__}: {error}")
        return 1
    finally:
        context.destroy()


if __name__ == "__main__":
    sys.exit(main())
