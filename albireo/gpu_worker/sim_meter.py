"""What a simulated GPU draws: idle power all the time, and the rest of its largest while it computes.

That makes energy an upper end for steps that read memory more than they compute, where GPUs stay below their limit.
"""

from typing import Final

from albireo.shm.device_use import Reading
from albireo.sim.spec import Power

INTERVAL_NS: Final = 500_000_000
"""Between two readings, as a GPU's."""


class SimMeter:
    """Stands in for the driver's figures of one device (`cuda.meter`)."""

    def __init__(self, power: Power, memory_used_bytes: int, now_ns: int) -> None:
        self._power = power
        self._memory_used_bytes = memory_used_bytes
        self._start_ns = self._last_ns = self._due_ns = now_ns
        self._working_s = self._last_working_s = 0.0

    def add_working(self, seconds: float) -> None:
        """Of a step that is done."""
        self._working_s += seconds

    def sample(self, now_ns: int) -> Reading | None:
        """A reading, at most every INTERVAL_NS."""
        if now_ns < self._due_ns:
            return None
        self._due_ns = now_ns + INTERVAL_NS
        elapsed_s = (now_ns - self._last_ns) * 1e-9
        # a step counts where it ends, so that a short stretch can hold more than itself
        share = min(1.0, (self._working_s - self._last_working_s) / elapsed_s) if elapsed_s else 0.0
        self._last_ns, self._last_working_s = now_ns, self._working_s
        idle, above = self._power.idle, self._power.max - self._power.idle
        joules = idle * (now_ns - self._start_ns) * 1e-9 + above * self._working_s
        return Reading(
            read_ns=now_ns,
            energy_mj=round(1e3 * joules),
            utilization_perc=round(100 * share),
            memory_used_bytes=self._memory_used_bytes,
            power_mw=round(1e3 * (idle + above * share)),
        )
