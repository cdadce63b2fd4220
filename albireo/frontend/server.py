"""The frontend's life: serve HTTP on the inherited socket, listen to the supervisor, end cleanly."""

import asyncio
import contextlib
import itertools
import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import uvicorn
import zmq
from starlette.types import ASGIApp

from albireo import logs, sockets
from albireo.config import FrontendConfig
from albireo.errors import StoppingError
from albireo.frontend.app import build_app
from albireo.frontend.connection_table import ConnectionTable, most_connections
from albireo.frontend.engine_client import EngineClient
from albireo.frontend.http_protocol import BoundedHttpProtocol
from albireo.frontend.replicas import Replicas
from albireo.frontend.request_metrics import RequestMetrics
from albireo.frontend.routing import Router
from albireo.frontend.service import Service, TextModel
from albireo.frontend.socket_reader import SocketReader
from albireo.messages import EngineReady, Ready, Reload, ReplicaDown, Stop, child_decoder, encode
from albireo.shm.flight import Recorder
from albireo.shm.routes import Routes

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
"""Longer than common proxies keep an idle connection (nginx: 60 s): else they send requests into one that we close."""

CLOSING_S = 1
"""Beyond the shutdown timeout: for writing last events and closing connections."""

_POLL_S = 0.02
_CHECK_TICKS = 10
"""Connections are looked at once a second: about a microsecond for each."""

log = logging.getLogger(__name__)


async def serve(
    config: FrontendConfig,
    text: TextModel,
    stats: Sequence[npt.NDArray[Any]],
    counts: npt.NDArray[Any],
    routes: Routes,
    context: "zmq.Context[zmq.Socket[bytes]]",
    control: "zmq.Socket[bytes]",
    stop: asyncio.Event,
    recorder: Recorder,
) -> None:
    """Serves until `stop` is set or the supervisor says Stop, then ends: at once, or when what runs has finished,
    within `config.shutdown_timeout_s` and a second or so.

    `stats`: of each replica, ENGINE_STATS[1]. `counts`: REQUEST_COUNTS[num_replicas * num_frontends]. `control`: DEALER
    to the supervisor. Raises what broke a link to another process.
    """
    loop = asyncio.get_running_loop()
    failures: list[Exception] = []

    def fail(error: Exception) -> None:
        failures.append(error)
        stop.set()

    numbers = itertools.count(1)
    metrics = [RequestMetrics(own, config.index) for own in np.split(counts, len(stats))]
    clients = [
        EngineClient(loop, counted, recorder, time.monotonic_ns, fail, numbers, own, load)
        for counted, own, load in zip(metrics, stats, routes.loads, strict=True)
    ]
    policy = config.routing_policy
    if policy == "cache-aware" and not config.scheduler.enable_prefix_caching:
        policy = "least-work"
    engine = Replicas(clients, partial(Router, policy, routes, len(clients)))
    service = Service(config, text, engine, metrics, stats, time.monotonic_ns)
    links = [CoordinatorLink(context, config, client) for client in clients]
    supervisor = Supervisor(loop, control, service, links, stop, fail)
    server = Server(build_app(service), config, supervisor.http_started)
    http = asyncio.create_task(server.serve([socket.socket(fileno=config.socket_fd)]))
    http.add_done_callback(lambda _: stop.set())
    try:
        await stop.wait()
        drains = supervisor.wants_drain and not failures and not http.done()
        await _drain(service, supervisor, server, config.shutdown_timeout_s if drains else 0)
    finally:
        server.should_exit = True
        await http
        engine.close()
        supervisor.close()
        for link in links:
            link.close()
        service.threads.shutdown(wait=False, cancel_futures=True)
    if failures:
        raise failures[0]


class CoordinatorLink:
    """The DEALER to a replica's coordinator, a new one for each coordinator: what was on its way to the last is gone
    with it. It never drops a message: see EngineClient."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", config: FrontendConfig, engine: EngineClient) -> None:
        self._context = context
        self._config = config
        self._engine = engine
        self._coordinator = ""
        self._socket: zmq.Socket[bytes] | None = None

    def connect(self, coordinator: str) -> None:
        """`coordinator`: its identity; nothing is done where it is the one that we have."""
        if coordinator == self._coordinator:
            return
        socket = sockets.open_socket(self._context, zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, self._config.identity.encode())
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.connect(sockets.coordinator_address(self._config.run_dir, coordinator))
        self._engine.connect(socket)
        self.close()
        self._coordinator, self._socket = coordinator, socket

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


async def _drain(service: Service, supervisor: "Supervisor", server: "Server", timeout_s: float) -> None:
    """Takes no more requests, gives the running ones until the timeout, and ends the others with an error. A response
    counts as running until its client has taken all of it: its last piece, or all where it does not stream, is only
    handed to the connection when its task ends."""
    service.stop()
    ends = time.monotonic() + timeout_s
    while supervisor.wants_drain and time.monotonic() < ends:
        if not service.engine.num_responses and not server.has_unsent:
            break
        await asyncio.sleep(_POLL_S)
    if service.engine.num_live:
        log.warning("%d requests had no time to finish; they end with an error", service.engine.num_live)
    service.engine.fail_all(StoppingError())


class Supervisor:
    """The control link: hears EngineReady, Reload and Stop, says Ready once HTTP is served and the engine is there."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        control: "zmq.Socket[bytes]",
        service: Service,
        links: Sequence[CoordinatorLink],
        stop: asyncio.Event,
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._service = service
        self._links = links
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
            self._links[message.replica].connect(message.coordinator)
            self._service.engine_ready(message.replica, message.num_kv_blocks, message.computes)
            self._say_ready()
        elif isinstance(message, ReplicaDown):
            self._service.engine.down(message.replica)
        elif isinstance(message, Reload):
            logs.set_level(message.log_level)
            if message.api_keys is not None:
                self._service.api_keys.replace(message.api_keys)
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
        self.server_state = ConnectionTable(most_connections())
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    @property
    def has_unsent(self) -> bool:
        """Whether something waits for a client to take it."""
        return any(connection.transport.get_write_buffer_size() for connection in self.server_state.connections)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second, from uvicorn's main loop."""
        if counter % _CHECK_TICKS == 0:
            now_s = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                assert isinstance(connection, BoundedHttpProtocol)
                try:
                    connection.check(now_s)
                except Exception:  # our bug, and this connection's alone
                    logger.exception("a connection's check failed")
                    connection.transport.abort()
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
