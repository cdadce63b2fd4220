"""An engine as the child of a Ray Serve replica: `albireo-run serve` on a Unix socket, with all its processes."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from albireo.cluster.upstream import UpstreamGoneError, get
from albireo.engine_file import find_engines
from albireo.run_directory import RunDirectory

STOP_TIMEOUT_S: Final = 15.0
"""Beyond --shutdown-timeout: how long the engine's processes may take to end before they are killed."""
RECOVERY_S: Final = 300.0
"""How long an engine may make no progress, or, where the first start took long, four times that: it starts what has
died again by itself, and ends where that does not help."""
_LOOK_INTERVAL_S: Final = 0.2
_PROBE_TIMEOUT_S: Final = 5.0
_READ_BYTES: Final = 64 * 1024


class EngineStartError(Exception):
    """The engine ended before it was ready; the text is what it said last."""


class Engine:
    """Started once, stopped once. Used by one event loop."""

    def __init__(self, serve_flags: Sequence[str], environment: dict[str, str], shutdown_timeout_s: float) -> None:
        """`environment`: in addition to this process's."""
        self._serve_flags = tuple(serve_flags)
        self._environment = environment
        self._stop_timeout_s = shutdown_timeout_s + STOP_TIMEOUT_S
        self._directory = ExitStack()
        self._last_line = b""
        self.is_stopping = False
        self._was_well_s = time.monotonic()
        """When it last was, or was started."""
        self._recovery_s = RECOVERY_S

    async def start(self) -> None:
        """Returns when the engine takes requests. Raises EngineStartError."""
        directory = self._directory.enter_context(RunDirectory())
        self.socket_path = str(Path(directory) / "http.sock")
        command = [sys.executable, "-m", "albireo.cluster.engine_child", directory]
        self._process = subprocess.Popen(
            [*command, *self._serve_flags, "--uds", self.socket_path],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **self._environment},
            process_group=0,
        )  # fmt: skip
        self._ended = asyncio.Event()
        pidfd = os.pidfd_open(self._process.pid)
        self._directory.callback(os.close, pidfd)
        asyncio.get_running_loop().add_reader(pidfd, self._has_ended, pidfd)
        self._relay = asyncio.create_task(self._relay_lines())
        begin_s = time.monotonic()
        while not self._is_ready():
            if self._ended.is_set():
                await self._clean_up()
                words = self._last_line.decode(errors="replace") or f"exit code {self._process.wait()}"
                raise EngineStartError(words.removeprefix("albireo: "))
            await asyncio.sleep(_LOOK_INTERVAL_S)
        self._was_well_s = time.monotonic()
        self._recovery_s = max(RECOVERY_S, 4 * (self._was_well_s - begin_s))

    def _has_ended(self, pidfd: int) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        self._ended.set()

    def _is_ready(self) -> bool:
        """Its file is written when all its processes are."""
        return any(engine.pid == self._process.pid for engine in find_engines())

    async def is_well(self) -> bool:
        """Whether it answers within 5 s, and `/health` has been 200 lately."""
        try:
            status, _ = await get(self.socket_path, "/health", _PROBE_TIMEOUT_S)
        except UpstreamGoneError:
            return False
        now_s = time.monotonic()
        if status == 200:
            self._was_well_s = now_s
        return now_s - self._was_well_s < self._recovery_s

    async def wait_for_end(self) -> int:
        """The exit code."""
        await self._ended.wait()
        return self._process.wait()

    async def stop(self) -> None:
        """As SIGTERM does: running streams finish within --shutdown-timeout. Then nothing is left of it."""
        self.is_stopping = True
        if not self._ended.is_set():
            self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(self._stop_timeout_s):
                    await self._ended.wait()
            except TimeoutError:
                self._process.kill()
                await self._ended.wait()
        await self._clean_up()

    async def _clean_up(self) -> None:
        """When it has ended. Processes of its own hold its stderr until they have, too."""
        self._process.wait()
        await asyncio.wait([self._relay], timeout=STOP_TIMEOUT_S)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._directory.close()

    async def _relay_lines(self) -> None:
        """The engine's log is this process's, and the last line is remembered."""
        assert self._process.stderr is not None
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._process.stderr)
        try:
            while data := await reader.read(_READ_BYTES):
                sys.stderr.write(data.decode(errors="replace"))
                sys.stderr.flush()
                lines = [line for line in data.splitlines() if line.strip()]
                self._last_line = lines[-1] if lines else self._last_line
        finally:
            transport.close()
