"""What a rank's GPU uses: its worker writes it into shared memory, and says which figures are there.

A figure that cannot be read is absent, never a guess and never an old value. A simulated device says that it is one.
"""

from enum import IntFlag
from typing import Any, NamedTuple

import numpy.typing as npt

from albireo.shm import layout
from albireo.shm.fence import fence


class Figure(IntFlag):
    """Bits of DEVICE_USE's `valid`."""

    ENERGY = 1
    UTILIZATION = 2
    MEMORY = 4
    POWER = 8
    BUSY = 16
    SIMULATED = 32
    """No figure: those that are there are a simulator's."""


READ_FIGURES = Figure.ENERGY | Figure.UTILIZATION | Figure.MEMORY | Figure.POWER
"""Those that the driver is asked for; busy time is counted by the worker."""


class Reading(NamedTuple):
    """What the driver said; None where it had no answer."""

    read_ns: int
    """CLOCK_MONOTONIC, just before it was asked."""
    energy_mj: int | None
    """Of the whole GPU, since its driver was loaded."""
    utilization_perc: int | None
    """0 to 100: share of its last sampling period (1/6 s to 1 s) in which a kernel ran."""
    memory_used_bytes: int | None
    """By all processes."""
    power_mw: int | None


_FIELDS = {name: offset // 8 for name, (_, offset) in layout.DEVICE_USE.fields.items()}  # type: ignore[union-attr, misc]
"""Places of the fields among the record's int64: a store through a memoryview takes a fifth of one through numpy."""
_BUSY_NS = _FIELDS["busy_ns"]


class DeviceUse:
    """Writer of one rank's DEVICE_USE, in its worker."""

    def __init__(self, record: npt.NDArray[Any], is_simulated: bool = False) -> None:
        """`record`: DEVICE_USE[1], in shared memory. From now on busy time is there, 0 at first."""
        self._always = int(Figure.BUSY | (Figure.SIMULATED if is_simulated else 0))
        self._record = record.data.cast("B").cast("q")
        self._busy_ns = 0
        self._energy_start_mj: int | None = None
        self._publish(self._always, {"busy_ns": 0})

    def add_busy(self, time_ns: int) -> None:
        """A step took so long on the device (`end_ns - begin_ns`). Two stores; called once a step."""
        self._busy_ns += time_ns
        self._record[_BUSY_NS] = self._busy_ns

    def write(self, reading: Reading) -> None:
        """Takes the place of the reading before; its figures that this one lacks are absent from now on."""
        energy_mj = reading.energy_mj
        if self._energy_start_mj is None:
            self._energy_start_mj = energy_mj
        values = {
            Figure.ENERGY: ("energy_mj", energy_mj),
            Figure.UTILIZATION: ("utilization_perc", reading.utilization_perc),
            Figure.MEMORY: ("memory_used_bytes", reading.memory_used_bytes),
            Figure.POWER: ("power_mw", reading.power_mw),
        }
        valid, fields = self._always, {"read_ns": reading.read_ns, "energy_start_mj": self._energy_start_mj or 0}
        for figure, (name, value) in values.items():
            if value is not None:
                valid |= figure
                fields[name] = value
        self._publish(valid, fields)

    def _publish(self, valid: int, fields: dict[str, int]) -> None:
        for name, value in fields.items():
            self._record[_FIELDS[name]] = value
        fence()
        self._record[_FIELDS["valid"]] = valid
