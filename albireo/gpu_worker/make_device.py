"""Which device a worker drives. Imports only what that device needs: null and simulated ones start without torch."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy.typing as npt

from albireo.config import WorkerConfig
from albireo.gpu_worker.stream_worker import StreamWorker
from albireo.gpu_worker.worker import Worker
from albireo.shm import layout
from albireo.shm.device_use import DeviceUse
from albireo.shm.flight import Recorder
from albireo.shm.stats import EngineStats

Report = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class MadeDevice:
    """A device, loaded, and what driving and ending it needs."""

    name: str
    num_kv_blocks: int
    make_worker: Callable[..., Worker | StreamWorker]
    """The worker that drives it, from the rings on (`Worker`'s parameters but the first)."""
    close: Callable[[], None]
    """Leaves the group of ranks."""
    group_closed_errors: tuple[type[Exception], ...] = ()
    """What a step raises when another rank has left the group in the middle of it."""
    wake_fd: int = -1
    """Readable when the worker should look; -1 for a device that is done when a step returns."""
    on_pause: Callable[[], None] = lambda: None
    """Called whenever the worker has nothing to launch or publish, often."""


def make_device(config: WorkerConfig, heartbeat: npt.NDArray[Any], recorder: Recorder, report: Report) -> MadeDevice:
    """The device that `config` names. `heartbeat` is this rank's WORKER_HEARTBEAT [1]; `report` hears of a stage of the
    start and how far it is. Raises whatever keeps the device from starting."""
    if config.device == "null":
        return _make_null_device(config, recorder)
    if config.device == "sim":
        return _make_sim_device(config, heartbeat, recorder)
    if config.device == "cuda":
        return _make_cuda_device(config, heartbeat, recorder, report)
    return _make_cpu_device(config, heartbeat, recorder, report)


def _make_null_device(config: WorkerConfig, recorder: Recorder) -> MadeDevice:
    from albireo.gpu_worker.null_device import NullDevice

    device = NullDevice(config, recorder, time.monotonic_ns)
    return MadeDevice(device.name, device.num_kv_blocks, partial(Worker, device), close=lambda: None)


def _make_sim_device(config: WorkerConfig, heartbeat: npt.NDArray[Any], recorder: Recorder) -> MadeDevice:
    from albireo.gpu_worker.sim_device import SimDevice
    from albireo.gpu_worker.sim_meter import SimMeter
    from albireo.gpu_worker.step_timer import StepTimer
    from albireo.sim.memory import rank_memory

    assert config.sim is not None, "a simulated device without its spec"
    use = DeviceUse(EngineStats(config.segments.stats).devices[config.rank : config.rank + 1], is_simulated=True)
    sizes = config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens
    memory = rank_memory(config.model, config.num_workers, config.dtype, config.sim, *sizes)
    timer = StepTimer()
    meter = SimMeter(config.sim.power, memory.used(config.kv_cache_bytes), time.monotonic_ns())

    def count_use(busy_ns: int, working_s: float) -> None:
        use.add_busy(busy_ns)
        meter.add_working(working_s)

    device, beat = SimDevice(config, config.sim, recorder, time.monotonic_ns, timer, count_use), _beat(heartbeat)

    def look_at_device() -> None:
        beat()  # it cannot get stuck, however long a step is that it simulates
        reading = meter.sample(time.monotonic_ns())
        if reading is not None:
            use.write(reading)

    return MadeDevice(
        device.name, device.num_kv_blocks, partial(StreamWorker, device), timer.close, wake_fd=timer.fd,
        on_pause=look_at_device,
    )  # fmt: skip


def _make_cpu_device(
    config: WorkerConfig, heartbeat: npt.NDArray[Any], recorder: Recorder, report: Report
) -> MadeDevice:
    from albireo.gpu_worker.collectives.group import make_collectives
    from albireo.gpu_worker.collectives.interface import GroupClosedError
    from albireo.gpu_worker.compile_ahead import CompileAhead
    from albireo.gpu_worker.cpu_device import CpuDevice

    ahead = CompileAhead(config)
    try:
        ahead.begin()
        collectives = make_collectives(config, heartbeat, recorder, time.monotonic_ns)
        address = heartbeat.ctypes.data + layout.WORKER_HEARTBEAT.fields["heartbeat_ns"][1]  # type: ignore[index]
        device = CpuDevice(config, collectives, _beat(heartbeat), report, recorder, address)
    finally:
        ahead.stop()
    worker = partial(Worker, device)
    return MadeDevice(device.name, device.num_kv_blocks, worker, collectives.close, (GroupClosedError,))


def _make_cuda_device(
    config: WorkerConfig, heartbeat: npt.NDArray[Any], recorder: Recorder, report: Report
) -> MadeDevice:
    from albireo.gpu_worker.cuda.availability import cuda_device_index

    index = cuda_device_index(config.number)
    from albireo.gpu_worker.collectives.group import make_collectives
    from albireo.gpu_worker.cuda.device import CudaDevice
    from albireo.gpu_worker.cuda.meter import DeviceMeter
    from albireo.gpu_worker.cuda.runtime import CudaRuntime

    runtime = CudaRuntime(index)
    collectives = make_collectives(config, heartbeat, recorder, time.monotonic_ns)
    use = DeviceUse(EngineStats(config.segments.stats).devices[config.rank : config.rank + 1])
    meter = DeviceMeter(runtime.uuid)
    device = CudaDevice(config, runtime, collectives, _beat(heartbeat), report, recorder, use.add_busy)

    def look_at_device() -> None:
        runtime.check()
        reading = meter.sample(time.monotonic_ns())
        if reading is not None:
            use.write(reading)

    def close() -> None:
        runtime.settle(timeout_s=1.0)
        collectives.close()
        meter.close()

    worker = partial(StreamWorker, device)
    return MadeDevice(
        device.name, device.num_kv_blocks, worker, close, wake_fd=device.wake_fd, on_pause=look_at_device
    )  # fmt: skip


def _beat(heartbeat: npt.NDArray[Any]) -> Callable[[], None]:
    def beat() -> None:
        heartbeat["heartbeat_ns"] = time.monotonic_ns()

    return beat
