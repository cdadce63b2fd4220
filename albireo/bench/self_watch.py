"""Watches the benchmark client itself: a client that is the bottleneck measures itself and must say so."""

import gc
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from msgspec import Struct

from albireo.bench.loop_lag import LoopLagSampler

MAX_CPU_SHARE = 0.8
"""Of one core, since the client has one thread: above it, chunks begin to queue before it."""
MAX_MEAN_LAG_SHARE = 0.1
"""Mean loop lag as a share of the mean inter-token latency: above it, the client's delays blur what is measured."""
MAX_P99_LAG_SHARE = 0.5
"""The same for the 99th percentiles, where a tail may be the client's and not the server's."""


class ClientLoad(Struct, frozen=True):
    """What the client itself needed during the measured part of a run."""

    wall_s: float
    cpu_s: float
    """Of the whole process."""
    waited_s: float | None
    """Ready to run but without a core (the kernel's run-queue delay); None where the kernel does not say."""
    lag_mean_ms: float
    lag_p99_ms: float
    lag_max_ms: float
    num_chunks: int = 0

    @property
    def cpu_share(self) -> float:
        """Cores used; 1.0 is one core fully busy."""
        return self.cpu_s / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def cpu_us_per_chunk(self) -> float:
        """All client CPU, sending included, spread over the chunks received."""
        return self.cpu_s / self.num_chunks * 1e6 if self.num_chunks else 0.0


class SelfWatch:
    """A context around the measured part of a run, on its event loop; `load` gives the figures afterwards.

    The garbage collector is off meanwhile: a collection would show up as latency of the server's.
    """

    def __init__(self) -> None:
        self._sampler = LoopLagSampler()
        self._before = (0.0, 0.0, 0.0)
        self._after = (0.0, 0.0, 0.0)
        self._waits_known = True

    def __enter__(self) -> "SelfWatch":
        gc.collect()
        gc.disable()
        self._sampler.__enter__()
        self._before = self._read()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._after = self._read()
        self._sampler.__exit__(kind, error, at)
        gc.enable()

    def load(self, num_chunks: int) -> ClientLoad:
        wall_s, cpu_s, waited_s = (after - before for before, after in zip(self._before, self._after, strict=True))
        lags_ms = np.array(self._sampler.lags_ns or [0]) / 1e6
        return ClientLoad(
            wall_s=wall_s,
            cpu_s=cpu_s,
            waited_s=waited_s if self._waits_known else None,
            lag_mean_ms=float(lags_ms.mean()),
            lag_p99_ms=float(np.percentile(lags_ms, 99)),
            lag_max_ms=float(lags_ms.max()),
            num_chunks=num_chunks,
        )

    def _read(self) -> tuple[float, float, float]:
        """Wall clock, CPU and run-queue wait so far, seconds."""
        try:
            # Of the main thread, which the loop runs on: on-CPU ns, waiting ns, time slices.
            waited_s = int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            self._waits_known, waited_s = False, 0.0
        return time.perf_counter(), time.process_time(), waited_s


def bottleneck_warnings(load: ClientLoad, itl_ms: Sequence[float]) -> list[str]:
    """One sentence for each way in which the client, not the server, may have set the figures; [] when none did.

    `itl_ms` are the measured gaps between chunks; with none of them only the CPU share can be judged.
    """
    warnings = []
    if load.cpu_share > MAX_CPU_SHARE:
        warnings.append(
            f"the benchmark client used {load.cpu_share:.0%} of a core: it may be the bottleneck. "
            "Share the load among several clients."
        )
    if not len(itl_ms):
        return warnings
    mean, p99 = float(np.mean(itl_ms)), float(np.percentile(itl_ms, 99))
    if load.lag_mean_ms > MAX_MEAN_LAG_SHARE * mean or load.lag_p99_ms > MAX_P99_LAG_SHARE * p99:
        warnings.append(
            f"the client handled chunks late, by {load.lag_mean_ms:.2f} ms on average (p99 {load.lag_p99_ms:.2f} ms), "
            f"against an inter-token latency of {mean:.2f} ms (p99 {p99:.2f} ms): the latencies below hold the "
            "client's own delays. Give it a core of its own."
        )
    return warnings
