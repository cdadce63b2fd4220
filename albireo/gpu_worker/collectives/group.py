"""Which collectives a worker gets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from albireo.config import WorkerConfig
from albireo.gpu_worker.collectives.interface import Alone, Collectives
from albireo.gpu_worker.collectives.recorded import RecordedCollectives
from albireo.shm.flight import Recorder


def make_collectives(
    config: WorkerConfig, heartbeat: npt.NDArray[Any], recorder: Recorder, clock_ns: Callable[[], int]
) -> Collectives:
    """This rank's end of the group that `config` describes; `heartbeat` is its WORKER_HEARTBEAT [1].

    Gloo and NCCL meet in a file of `run_dir`, which is the engine's own. Imports only what is asked for: a rank
    alone needs neither kernels nor torch.distributed."""
    if config.num_workers == 1:
        return Alone()
    return RecordedCollectives(_make_group(config, heartbeat, clock_ns), recorder, clock_ns)


def _make_group(config: WorkerConfig, heartbeat: npt.NDArray[Any], clock_ns: Callable[[], int]) -> Collectives:
    if config.collectives != "shm":
        from albireo.gpu_worker.collectives.gloo import TorchCollectives

        init_file = Path(config.run_dir) / f"collectives-{config.replica}-{config.incarnation}"
        return TorchCollectives(config.collectives, init_file, config.rank, config.num_workers, heartbeat, clock_ns)
    from albireo.gpu_worker.collectives.shm import ShmCollectives

    return ShmCollectives(config.segments.collectives, config.rank, config.num_workers, heartbeat, clock_ns)
