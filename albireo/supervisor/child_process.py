"""One process of the engine, as the supervisor holds it.

A child's stdin is a pipe that carries its config and whose end tells it that the supervisor is gone (`child.py`). Until
it listens for that, the kernel kills it when the supervisor dies (`child_main.py`): the thread that starts children is
the one that lives as long as the process.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace

import msgspec

from albireo import config
from albireo.config import ChildConfig, FrontendConfig, GrammarConfig, LogFormat
from albireo.messages import EngineReady, Fatal, Reload
from albireo.settings import Settings


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A process to start: `module`, by `child_main.py`, with this config, environment additions and inherited
    descriptors."""

    module: str
    config: ChildConfig
    environment: dict[str, str] = field(default_factory=dict)
    fds: tuple[int, ...] = ()
    preload: str = ""
    """Module that takes long to import; empty: there are no spares (`Spare`) for this process."""

    def successor(self) -> "ChildSpec":
        """Of the process that takes this one's place."""
        return self._with(incarnation=self.config.incarnation + 1)

    def beside(self, coordinator: str) -> "ChildSpec":
        """The same beside the coordinator of this identity, for processes that must know it at their start."""
        if not isinstance(self.config, GrammarConfig):
            return self
        return self._with(coordinator=coordinator)

    def logging_as(self, log_format: LogFormat) -> "ChildSpec":
        """The same with lines of this form."""
        return self._with(log_format=log_format)

    def under(self, settings: Settings) -> "ChildSpec":
        """The same with these settings."""
        keys = {"api_keys": settings.api_keys} if isinstance(self.config, FrontendConfig) else {}
        return self._with(log_level=settings.log_level, **keys)

    def settings_message(self) -> Reload:
        """What a process that was started with other settings is to be told."""
        return Reload(self.config.log_level, self.config.api_keys if isinstance(self.config, FrontendConfig) else None)

    def _with(self, **fields: object) -> "ChildSpec":
        return replace(self, config=msgspec.structs.replace(self.config, **fields))


def _popen(spec: ChildSpec, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "albireo.child_main", spec.module, *arguments],
        stdin=subprocess.PIPE,
        pass_fds=spec.fds,
        process_group=0,  # a terminal's Ctrl-C is for the supervisor alone
        env={**os.environ, **spec.environment},
    )


class Spare:
    """A process that has imported what takes long, and waits for its config: half of a start is behind it."""

    def __init__(self, spec: ChildSpec) -> None:
        self.process = _popen(spec, spec.preload)

    def hurry(self) -> None:
        """It is needed: what it still has to import it does as others do. One that somebody has stopped goes on."""
        with suppress(OSError):
            os.sched_setscheduler(self.process.pid, os.SCHED_OTHER, os.sched_param(0))
        os.kill(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        _close(self.process)


class Child:
    """A started process and what it has said."""

    def __init__(self, spec: ChildSpec, spare: Spare | None = None) -> None:
        """`spare`: of this spec, or of one that it succeeds."""
        self.spec = spec
        self.started_s = time.monotonic()
        self.process = _popen(spec) if spare is None else spare.process
        if spare is not None:
            spare.hurry()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead already: its pidfd says so
            self.process.stdin.write(config.encode_config(spec.config))
            self.process.stdin.flush()
        self.pidfd = os.pidfd_open(self.process.pid)
        self.is_heard = False
        """It has sent something: a ROUTER drops what it has for a peer that it has not met."""
        self.is_ready = False
        self.has_served = False
        """It has been ready."""
        self.coordinator = ""
        """Of a coordinator its own identity, while it has the workers."""
        self.engines: dict[int, EngineReady] = {}
        """Of a frontend, by replica: what it was told of it last, if it has not gone down since."""
        self.num_kv_blocks = 0
        self.device = ""
        self.fatal: Fatal | None = None
        self.is_killed = False
        """By us; its end is still to come."""

    @property
    def config(self) -> ChildConfig:
        return self.spec.config

    @property
    def name(self) -> str:
        return self.spec.config.name

    @property
    def identity(self) -> str:
        return self.spec.config.identity

    def ending(self) -> str:
        """How it has ended, as the rest of a sentence. Waits for that."""
        code = self.process.wait()
        return f"was killed by {_signal_name(-code)}" if code < 0 else f"exited with code {code}"

    def bury(self) -> None:
        """Kills it if it lives, and closes what is left of it here."""
        self.process.kill()
        self.process.wait()
        _close(self.process)
        os.close(self.pidfd)


def _close(process: "subprocess.Popen[bytes]") -> None:
    """Its stdin, whatever the process has not taken of it."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()


def _signal_name(number: int) -> str:
    """Real-time signals have none, but for the first and the last."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
