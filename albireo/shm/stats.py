"""The engine's counters, heartbeats and GPUs in shared memory: written in place, read by anyone at any time."""

from typing import Any, Final

import numpy.typing as npt

from albireo.shm import layout
from albireo.shm.segment import Segment

ITERATION_TOKENS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper ends of the buckets of `iteration_tokens` in ENGINE_STATS."""

GAUGES: Final = (
    "num_running", "num_waiting", "num_blocks_used", "num_blocks_cached", "num_swap_blocks_used", "run_ahead_depth",
)  # fmt: skip
"""Fields of ENGINE_STATS that say what a coordinator has just now; it takes them with it."""


def stats_bytes(num_workers: int) -> int:
    """Size of the stats segment."""
    per_worker = layout.WORKER_HEARTBEAT.itemsize + layout.DEVICE_USE.itemsize
    return layout.SEGMENT_HEADER.itemsize + layout.ENGINE_STATS.itemsize + num_workers * per_worker


def initialise(fd: int, num_workers: int) -> None:
    """Writes the header; the supervisor's part."""
    Segment(fd).write_header(layout.KIND_STATS, num_consumers=num_workers)


class EngineStats:
    """Views of the stats segment: `engine` (ENGINE_STATS[1], the coordinator writes), `workers` and `devices`
    (WORKER_HEARTBEAT[num_workers], DEVICE_USE[num_workers], each worker writes its own)."""

    def __init__(self, fd: int) -> None:
        segment = Segment(fd)
        segment.check_header(layout.KIND_STATS)
        offset = layout.SEGMENT_HEADER.itemsize
        self.engine: npt.NDArray[Any] = segment.array(layout.ENGINE_STATS, offset, 1)
        offset += layout.ENGINE_STATS.itemsize
        num_workers = int(segment.header()["num_consumers"][0])
        self.workers: npt.NDArray[Any] = segment.array(layout.WORKER_HEARTBEAT, offset, num_workers)
        offset += num_workers * layout.WORKER_HEARTBEAT.itemsize
        self.devices: npt.NDArray[Any] = segment.array(layout.DEVICE_USE, offset, num_workers)

    def clear_gauges(self) -> None:
        """The coordinator has died; the supervisor's part. What it has counted stays: its successor counts on."""
        for name in GAUGES:
            self.engine[name] = 0
