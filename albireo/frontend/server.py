"""The frontend's life: serve HTTP on the inherited socket, listen to the supervisor, end cleanly."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt
import uvicorn
import zmq
from starlette.types import ASGIApp

from albireo import sockets
from albireo.config import FrontendConfig
from albireo.errors import UnavailableError
from albireo.frontend.app import build_app
from albireo.frontend.engine_client import EngineClient
from albireo.frontend.http_protocol import BoundedHttpProtocol
from albireo.frontend.request_metrics import RequestMetrics
from albireo.frontend.service import Service, TextModel
from albireo.frontend.socket_reader import SocketReader
from albireo.messages import EngineReady, Ready, Stop, child_decoder, encode
from albireo.shm.flight import Recorder

KEEP_ALIVE_S = 75
"""Longer than common proxies keep an idle connection (nginx: 60 s): else they send requests into one that we close."""

CLOSING_S = 1
"""Of the shutdown timeout, what is left for writing last events and closing connections."""

_POLL_S = 0.02


async def serve(
    config: FrontendConfig,
    text: TextModel,
    stats: npt.NDArray[Any],
    counts: npt.NDArray[Any],
    context: "zmq.Context[zmq.Socket[bytes]]",
    control: "zmq.Socket[bytes]",
    stop: asyncio.Event,
    recorder: Recorder,
) -> None:
    """Serves until `stop` is set or the supervisor says Stop, then ends within `config.shutdown_timeout_s`.

    `stats`: ENGINE_STATS[1]. `counts`: REQUEST_COUNTS[num_frontends]. `control`: DEALER to the supervisor. Raises what
    broke a link to another process.
    """
    loop = asyncio.get_running_loop()
    failures: list[Exception] = []

    def fail(error: Exception) -> None:
        failures.append(error)
        stop.set()

    coordinator = _connect(context, config)
    metrics = RequestMetrics(counts, config.index)
    engine = EngineClient(loop, coordinator, metrics, recorder, time.monotonic_ns, fail)
    service = Service(config, text, engine, metrics, stats, time.monotonic_ns)
    supervisor = Supervisor(loop, control, service, stop, fail)
    server = Server(build_app(service), config, supervisor.http_started)
    http = asyncio.create_task(server.serve([socket.socket(fileno=config.socket_fd)]))
    http.add_done_callback(lambda _: stop.set())
    try:
        await stop.wait()
        drains = supervisor.wants_drain and not failures and not http.done()
        await _drain(service, supervisor, config.shutdown_timeout_s - CLOSING_S if drains else 0)
    finally:
        server.should_exit = True
        await http
        engine.close()
        supervisor.close()
        coordinator.close()
        service.threads.shutdown(wait=False, cancel_futures=True)
    if failures:
        raise failures[0]


def _connect(context: "zmq.Context[zmq.Socket[bytes]]", config: FrontendConfig) -> "zmq.Socket[bytes]":
    """The DEALER to the coordinator. It never drops a message: see EngineClient."""
    link = sockets.open_socket(context, zmq.DEALER)
    link.setsockopt(zmq.IDENTITY, config.name.encode())
    link.setsockopt(zmq.SNDHWM, 0)
    link.setsockopt(zmq.RCVHWM, 0)
    link.connect(sockets.coordinator_address(config.run_dir))
    return link


async def _drain(service: Service, supervisor: "Supervisor", timeout_s: float) -> None:
    """Takes no more requests, gives the running ones until the timeout, and ends the others with an error."""
    service.stop()
    ends = time.monotonic() + timeout_s
    while service.engine.num_live and supervisor.wants_drain and time.monotonic() < ends:
        await asyncio.sleep(_POLL_S)
    service.engine.fail_all(UnavailableError("the server is stopping"))


class Supervisor:
    """The control link: hears EngineReady and Stop, says Ready once HTTP is served and the engine is there."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        control: "zmq.Socket[bytes]",
        service: Service,
        stop: asyncio.Event,
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._service = service
        self._stop = stop
        self._decoder = child_decoder()
        self._http_started = False
        self._said_ready = False
        self.wants_drain = True
        """False once the supervisor says that nothing can finish the running streams."""
        self._reader = SocketReader(loop, control, self._on_frame, on_failure, time.monotonic_ns)

    def http_started(self) -> None:
        self._http_started = True
        self._say_ready()

    def close(self) -> None:
        self._reader.close()

    def _on_frame(self, frame: bytes, begin_ns: int) -> None:
        message = self._decoder.decode(frame)
        if isinstance(message, EngineReady):
            self._service.engine_ready(message.num_kv_blocks)
            self._say_ready()
        elif isinstance(message, Stop):
            self.wants_drain = message.drain
            self._stop.set()

    def _say_ready(self) -> None:
        if self._http_started and self._service.unavailable is None and not self._said_ready:
            self._said_ready = True
            self._reader.send(encode(Ready()))


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers: this process's signals are its own and the supervisor's business."""

    def __init__(self, app: ASGIApp, config: FrontendConfig, on_started: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedHttpProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                root_path=config.root_path,
                ssl_keyfile=config.ssl_keyfile,
                ssl_certfile=config.ssl_certfile,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=CLOSING_S,
            )
        )
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
