"""Which device a worker drives. Imports only what that device needs: the null device starts without torch."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from albireo.config import WorkerConfig
from albireo.gpu_worker.worker import Device
from albireo.shm import layout
from albireo.shm.flight import Recorder


@dataclass(frozen=True, slots=True)
class MadeDevice:
    """A device and what its end needs."""

    device: Device
    close: Callable[[], None]
    """Leaves the group of ranks."""
    group_closed_errors: tuple[type[Exception], ...] = ()
    """What `execute` raises when another rank has left the group in the middle of a step."""


def make_device(
    config: WorkerConfig, heartbeat: npt.NDArray[Any], recorder: Recorder, report: Callable[[str, float], None]
) -> MadeDevice:
    """The device that `config` names, loaded. `heartbeat` is this rank's WORKER_HEARTBEAT [1]; `report` hears of a
    stage of the start and how far it is. Raises whatever keeps the device from starting."""
    if config.device == "null":
        from albireo.gpu_worker.null_device import NullDevice

        return MadeDevice(NullDevice(config, recorder, time.monotonic_ns), close=lambda: None)
    return _make_cpu_device(config, heartbeat, recorder, report)


def _make_cpu_device(
    config: WorkerConfig, heartbeat: npt.NDArray[Any], recorder: Recorder, report: Callable[[str, float], None]
) -> MadeDevice:
    from albireo.gpu_worker.collectives.group import make_collectives
    from albireo.gpu_worker.collectives.interface import GroupClosedError
    from albireo.gpu_worker.compile_ahead import CompileAhead
    from albireo.gpu_worker.cpu_device import CpuDevice

    def beat() -> None:
        heartbeat["heartbeat_ns"] = time.monotonic_ns()

    ahead = CompileAhead(config)
    try:
        ahead.begin()
        collectives = make_collectives(config, heartbeat, recorder, time.monotonic_ns)
        address = heartbeat.ctypes.data + layout.WORKER_HEARTBEAT.fields["heartbeat_ns"][1]  # type: ignore[index]
        device = CpuDevice(config, collectives, beat, report, recorder, address)
    finally:
        ahead.stop()
    return MadeDevice(device, collectives.close, (GroupClosedError,))
